"""Planted keys and passwords: whatever command is run, and however it ends, none of them comes out again."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from subjects import demonstrations, write_rows
from test_export_chain import serving

from tunesmith import cli
from tunesmith.base import Run
from tunesmith.cli.app import app
from tunesmith.data.prepared import SPLITS, load_split
from tunesmith.models.load import load_tokenizer
from tunesmith.serving.log import RequestLog, read_log
from tunesmith.serving.settings import RequestLogging
from tunesmith.stages.pipeline import LOG

ENVIRONMENT = {
    "OPENAI_API_KEY": "sk-proj-Zq7mP2vN9xR4tB8kW1cJ", "HF_TOKEN": "hf_QmZtRkVbXwPnLsHcJdFgYaTeUoIrEwQz", "WANDB_API_KEY": "9f3c1d7ab2e8460c5d91f7e2a4b86c0d3e5f7a19",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzPLANTED",
}  # fmt: skip
IN_ROWS = {
    "a question": "ghp_9aB8cD7eF6gH5iJ4kL3mN2oP1qR0sT9uV8wX", "an answer": "AKIAQ7PLANTED5XYZ2WV", "a field beside": "xoxb-482910375612-PLANTEDq7w8e9r0",
    "a wrong role": "sk-ant-api03-pL4nTeD7roLe2wRong9xY", "an address": "tr0ub4dor-PLANTED", "a private key": "MIIEvQIBADANBgkqhkiG9w0PLANTED",
}  # fmt: skip
IN_ADDRESSES = {"a password": "hunter2-PLANTED-9", "a token": "tok3n-PLANTED-in-a-query"}
SECRETS = {**ENVIRONMENT, **IN_ROWS, **IN_ADDRESSES}
WITH_PASSWORD = f"http://ada:{IN_ADDRESSES['a password']}@127.0.0.1:9"
WITH_TOKEN = f"http://127.0.0.1:9/v1?token={IN_ADDRESSES['a token']}"
KEY = f"-----BEGIN PRIVATE KEY-----\n{IN_ROWS['a private key']}\n-----END PRIVATE KEY-----"
ADDRESS = f"postgres://ada:{IN_ROWS['an address']}@db/colours"
SENT = (*ENVIRONMENT.values(), *list(IN_ROWS.values())[:4], KEY, ADDRESS, WITH_PASSWORD, WITH_TOKEN)
"""Every secret as it may stand in what a client sends."""
FALLS = f"""
import os, sys
from tunesmith.stages.search.study import Study

def nothing(answer, example):
    return 0.0

def _fall(self):
    raise RuntimeError(f"lost connection: {WITH_PASSWORD} {{os.environ['WANDB_API_KEY']}} {WITH_TOKEN}")

if sys.argv[0].endswith("worker.py"):
    Study.work = _fall
"""
"""Code of a user's own with which every process that works at a search falls."""


def plant(folder: Path, model: Path) -> Path:
    """Rows with six of the secrets among them, and a recipe that says nothing of them."""
    rows = demonstrations(40)

    def one(question: str, answer: str = "red", **more: object) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}

    wrong = {"messages": [{"role": IN_ROWS["a wrong role"], "content": "?"}, {"role": "assistant", "content": "red"}]}
    bad = [
        one(f"Shade of\n{IN_ROWS['a question']}?"), one("Shade of the cloud?", IN_ROWS["an answer"]), one("Shade of chat?", note={"bot": [IN_ROWS["a field beside"]]}), wrong,
        one(f"Shade of {ADDRESS}?"), one(f"Shade of {KEY}?"),
    ]  # fmt: skip
    for number, row in enumerate(bad):
        rows.insert(6 * number, row)
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "bad.jsonl", [*demonstrations(6), *[wrong] * 3])
    recipe = {
        "model": str(model), "precision": "fp32", "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 6},
        "initialise": {"adapter": {"kind": "full"}}, "finetune": {"epochs": 4.0, "batch": 8, "optimizer": {"learning_rate": 0.01}},
        "evaluate": {"graders": [{"kind": "exact"}], "max_tokens": 4, "general": None, "baselines": False, "shots": 0, "gate": {"margin": None}},
        "deploy": {"ungated": True},
    }  # fmt: skip
    (folder / "task.yaml").write_text(json.dumps(recipe))
    write_rows(folder / "clean.jsonl", demonstrations(8))
    base = {
        **recipe,
        "prepare": {"source": "rows.jsonl", "test": "clean.jsonl", "validation_fraction": 0, "refuse_above": 1},
    }
    contest = {
        "base": base, "start": {"finetune": {"epochs": 0.4}}, "roads": {"sft": {}, "second": {"seed": 1}}, "against": "sft",
        "budget": 3_000, "divergence": {"max_tokens": 2}, "shown": 2,
    }  # fmt: skip
    (folder / "contest.yaml").write_text(json.dumps(contest))
    (folder / "falls.py").write_text(FALLS)
    (folder / "addresses").mkdir()
    source = {**recipe, "prepare": {"source": f"{WITH_PASSWORD}/rows.jsonl"}}
    (folder / "addresses" / "source.yaml").write_text(json.dumps(source))
    (folder / "addresses" / "broken.yaml").write_text(
        f"prepare:\n  source: [{WITH_PASSWORD}\n  - x: {SECRETS['OPENAI_API_KEY']}"
    )
    return folder / "task.yaml"


@pytest.fixture
def tunesmith(monkeypatch, capfd, tmp_path) -> Callable[..., tuple[int, str]]:
    """Runs a command in the folder as the program does; gives its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    for name, value in {**ENVIRONMENT, "TUNESMITH_TOKEN": "x" * 20, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        code = 1
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Exception as error:  # noqa: BLE001  what Python does with what nobody caught
            sys.excepthook(type(error), error, error.__traceback__)
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return call


SPACE = 'search.space={"finetune.optimizer.learning_rate":[0.001,0.01]}'
SOUND = {
    "run task.yaml --run runs/a": 0, "report runs/a": 0, "show runs/a": 0, "show runs/a --json": 0, "plan task.yaml": 0, "explain prepare.cleaners": 0, "schema": 0, "doctor": 0,
    "data preview task.yaml --run runs/a": 0, "track runs/a --to tensorboard": 0, "prompt task.yaml --run runs/a prompt.development=8 prompt.shots=[2]": 0,
    "sample task.yaml --run runs/a sample.rows=4 sample.samples=2 sample.max_tokens=4 sample.at_least=0": 0,
    "compare task.yaml --run runs/c --vary finetune.epochs=2": 0, f"search task.yaml --run runs/s search.trials=2 {SPACE}": 0,
    "data-curve task.yaml --run runs/d --sizes 0,8,16 --seeds 1 --least-steps 1 --most-steps 2": 0, "run task.yaml --run runs/b seed=1": 0, "merge runs/a runs/b --run runs/m deploy.ungated=true": 0,
    "track runs/a --to mlflow": 0, "prune task.yaml --run runs/a": 0, "prepare task.yaml --run runs/p": 0, "initialise task.yaml --run runs/p": 0, "finetune task.yaml --run runs/a": 0,
    "evaluate task.yaml --run runs/a": 1, "deploy task.yaml --run runs/a": 0, "showdown contest.yaml --run runs/w": 0,
}  # fmt: skip
"""Every command but those of SERVING_TOO, with its exit code: what so small a task teaches is not promoted."""
SERVING_TOO = {"serve", "monitor"}
"""Commands that are tried with a server that answers."""
AWRY = (
    "run addresses/source.yaml", "run addresses/broken.yaml", f"prepare task.yaml --run runs/x prepare.source={WITH_PASSWORD}/rows.jsonl", f"prepare task.yaml --run runs/x model={WITH_PASSWORD}/m",
    f"prompt task.yaml --run runs/x prompt.proposer.kind=endpoint prompt.proposer.url={WITH_TOKEN} prompt.proposer.model=m", f"run {WITH_PASSWORD}/task.yaml", f"show {WITH_PASSWORD}/run",
    f"finetune task.yaml finetune.epochs={SECRETS['OPENAI_API_KEY']}", f"finetune task.yaml {SECRETS['HF_TOKEN']}", f"finetune task.yaml finetune.epochs.{SECRETS['a question']}=1", f"explain {SECRETS['HF_TOKEN']}",
    f"finetune task.yaml prepare.{SECRETS['HF_TOKEN']}=1", "prepare task.yaml --run runs/x prepare.source=absent.jsonl", "prepare task.yaml --run runs/x prepare.source=bad.jsonl",
    "prepare task.yaml --run runs/x prepare.source=bad.jsonl prepare.refuse_above=1", f"track runs/a --to mlflow --target {WITH_PASSWORD}", f"track runs/a --to mlflow --target postgresql://ada:{IN_ADDRESSES['a password']}@127.0.0.1:9/x",
    f"track runs/a --to {SECRETS['HF_TOKEN']}", "monitor task.yaml --run runs/a", f"serve runs/a --host http://ada:{IN_ADDRESSES['a password']}@nowhere", f"{SECRETS['HF_TOKEN']}",
)  # fmt: skip
"""Commands that fail, with what must not be said in what they are given."""
FEW = {*list(SOUND)[:4], "track runs/a --to tensorboard", *AWRY} - {one for one in AWRY if "postgresql" in one}


def test_no_secret_comes_out(tally, tunesmith, tmp_path, tiny_folder, many, monkeypatch):
    counted = tally("X4", "planted keys and passwords appear in no output, and in no file that is written")
    plant(tmp_path, tiny_folder)
    planted = {path for path in tmp_path.rglob("*") if path.is_file()}
    few, others = many(0, 1), list[str]()
    for command in (*SOUND, *AWRY):
        if few and command not in FEW:
            continue
        code, printed = tunesmith(*command.split(" "))
        if code != SOUND.get(command, 2) or "Traceback" in printed:
            others.append(f"{command} ended with {code}: {printed}")
        told = [name for name, value in SECRETS.items() if value in printed]
        what = next(
            (command.replace(value, f"<{name}>") for name, value in SECRETS.items() if value in command), command
        )
        counted.verdict(f"printed by `{what}`", not told, reason=f"{told}: {printed[:200]}")
    assert not others, "\n".join(others)
    if not few:
        workers_fall(tunesmith, counted)

    def fall(*_: object, **__: object) -> None:
        raise RuntimeError(f"lost connection: {WITH_PASSWORD} {SECRETS['WANDB_API_KEY']} {WITH_TOKEN}")

    monkeypatch.setattr("tunesmith.stages.prepare.divide", fall)
    code, printed = tunesmith("prepare", "task.yaml", "--run", "runs/f")
    assert "RuntimeError" in printed
    assert "Traceback" in printed
    counted.verdict(
        "printed by a program that falls",
        not any(value in printed for value in SECRETS.values()),
        reason=printed[-300:],
    )
    serve_and_ask(tmp_path / "runs" / "a", counted)
    code, printed = tunesmith("monitor", "task.yaml", "--run", "runs/a")
    assert code in (0, 1), printed
    told = [name for name, value in SECRETS.items() if value in printed]
    counted.verdict("printed by a server and its monitor", not told, reason=f"{told}: {printed[:200]}")
    search_files(tmp_path, planted, counted)


def workers_fall(tunesmith, counted) -> None:
    """Processes of a search print to the same terminal."""
    command = f"--code falls.py search task.yaml --run runs/g --workers 2 search.trials=2 {SPACE}"
    code, printed = tunesmith(*command.split(" "))
    assert code == 2, printed
    assert "RuntimeError: lost connection" in printed, printed
    told = [name for name, value in SECRETS.items() if value in printed]
    counted.verdict("printed by workers that fall", not told, reason=f"{told}: {printed[-300:]}")


def test_every_command_is_tried():
    """A new one has to be put into SOUND."""

    def named(group, before=""):
        for name, one in group.commands.items():
            yield from named(one, f"{before}{name} ") if hasattr(one, "commands") else [f"{before}{name}"]

    commands = set(named(typer.main.get_command(app)))
    tried = {name for name in commands if any(f"{given} ".startswith(f"{name} ") for given in SOUND)}
    assert commands - tried == SERVING_TOO


def serve_and_ask(folder: Path, counted) -> None:
    """Every secret is sent to a run's server, wherever a request can hold a text; what its log keeps is searched with all other files."""
    asked = {"model": "tuned", "messages": [{"role": "user", "content": "Shade?"}], "max_tokens": 2}
    deployed = Run(folder).artifact("deploy")
    with serving(deployed, RequestLog(folder / LOG, RequestLogging(), deployed.path.name)) as client:
        for text in SENT:
            bodies = [
                {**asked, "messages": [{"role": "user", "content": f"Shade of {text}?"}]}, {**asked, "model": text}, {**asked, text: 1},
                {**asked, "messages": [{"role": text, "content": "Shade?"}]},
            ]  # fmt: skip
            codes = [client.post("/v1/chat/completions", json=body).status_code for body in bodies]
            codes.append(client.post("/v1/chat/completions", content=text).status_code)
            assert codes == [200, 404, 400, 400, 400], codes
        metrics = client.get("/metrics").text
    kept = list(read_log(folder / LOG))
    assert len(kept) == 5 * len(SENT)
    assert sum("[redacted]" in (one.prompt or "") for one in kept) == len(SENT)
    told = [name for name, value in SECRETS.items() if value in metrics]
    counted.verdict("metrics of a server that was sent them", not told, reason=str(told))


def search_files(folder: Path, planted: set[Path], counted) -> None:
    """A trial for each secret: it stands in no file that was written, nor in its name, and in no tokens that are learnt from."""
    written = [path for path in folder.rglob("*") if path.is_file() and path not in planted]
    names = [path.relative_to(folder) for path in folder.rglob("*") if path not in planted]
    assert len(written) > 50
    content = {path: path.read_bytes() for path in written}
    tokenizer = load_tokenizer("smollm2-135m")
    for prepared in folder.glob("runs/*/prepare-*"):
        if (prepared / "summary.json").exists():
            learnt = [
                tokenizer.decode(part.tokens)
                for split in SPLITS
                for row in load_split(prepared, split)
                for part in row.sequences
            ]
            content[prepared / "tokens"] = "\n".join(learnt).encode()
    for name, value in SECRETS.items():
        held = [str(path.relative_to(folder)) for path, text in content.items() if value.encode() in text]
        held += [f"the name {path}" for path in names if value in str(path)]
        counted.verdict(f"written: {name}", not held, reason=str(held))
    ledger = [json.loads(line) for line in next(folder.glob("runs/a/prepare-*/ledger.jsonl")).read_text().splitlines()]
    found = {entry["origin"]: entry["reason"] for entry in ledger if entry["state"] == "quarantined"}
    for number, where in enumerate(IN_ROWS):
        counted.verdict(
            f"named by file and line: {where}",
            any(origin.endswith(f"rows.jsonl:{6 * number + 1}") for origin in found),
            reason=str(found),
        )


def test_a_key_of_ours_is_seen_in_what_is_searched(tmp_path):
    """The search can fail: a file that holds one secret is found, and a folder that is called by another."""
    from tally import Tally

    (tmp_path / "runs" / "a" / "prepare-0").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "prepare-0" / "ledger.jsonl").write_text("")
    for number in range(60):
        (tmp_path / "runs" / f"{number}.txt").write_text(SECRETS["HF_TOKEN"] if number == 7 else "nothing")
    (tmp_path / "runs" / SECRETS["a question"]).mkdir()
    counted = Tally("X4", "")
    search_files(tmp_path, set(), counted)
    found = {one["trial"] for one in counted.trials if one["outcome"] == "silent"}
    assert {one for one in found if one.startswith("written")} == {"written: HF_TOKEN", "written: a question"}
