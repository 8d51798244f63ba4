"""Twenty things people get wrong: each gives one line that says what, where and how to mend, and exit code 2."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig

from tunesmith.base import Artifact
from tunesmith.cli.serving import warn_of_age

GOOD = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}


def refused(result: tuple[int, str, str], *words: str) -> None:
    """The exit code is 2 and the one line on standard error holds every word."""
    code, _, error = result
    lines = [line for line in error.splitlines() if line.startswith("tunesmith: ")]
    assert code == 2, error
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("finetune.epchs=3", ["finetune.epchs", "did you mean 'epochs'"]),
        ("finetune.epochs=many", ["finetune.epochs", "number", "'many'"]),
        ("finetune.epochs=-1", ["finetune.epochs", "greater than 0"]),
        ("finetune.objective.kind=sfft", ["objective", "'sfft'"]),
        ("initialise.adapter.kind=lore", ["lore", "did you mean 'lora'"]),
        ("evaluate.graders=[{kind: exakt}]", ["exakt", "'exact'"]),
        ("finetune.batch", ["path.to.field=value"]),
        ("prepare.format=jsonl", ["format", "messages"]),
        ("initialise.adapter.targets=[nothing]", ["adapter.targets", "q_proj"]),
        ("prepare.source=absent.jsonl", ["absent.jsonl"]),
        ("model=absent", ["'absent'", "smollm2-135m"]),
        ("model=./absent.gguf", ["absent.gguf", "not found"]),
        ("prepare.max_tokens=8", ["max_tokens"]),
        ("seed=-1", ["seed", "greater than or equal to 0"]),
        ("seed=20240131235959", ["seed", "less than 4294967296"]),
        ("evaluate.general=absent.jsonl", ["absent.jsonl"]),
        ("evaluate.slices=[colour]", ["evaluate.slices", "'colour'", "there are answer"]),
        ("evaluate.gate.beat=[bass]", ["evaluate.gate.beat", "'bass'", "base, few-shot, majority, svm"]),
        ("evaluate={shots: 0, gate: {beat: [few-shot]}}", ["evaluate.gate.beat", "'few-shot'", "base, majority, svm"]),
        ("evaluate={graders: [{kind: perplexity}], gate: {beat: [svm]}}", ["'svm'", "which is base;"]),
        ("evaluate.graders=[{}]", ["evaluate.graders.0", "`tunesmith explain evaluate.graders`"]),
    ],
)
def test_wrong_setting(tunesmith, task, assignment, words):
    refused(tunesmith("initialise", task(), assignment), *words)


def test_a_setting_that_is_refused_before_anything_is_computed_does_not_stay(tunesmith, task, tmp_path):
    kept = tmp_path / "r" / "resolved.yaml"
    assert tunesmith("prepare", task(), "--run", "r")[0] == 0
    before = kept.read_text()
    for command, *more in (["prepare"], ["run"], ["compare", "--vary", "finetune.epochs=1,2"], ["data-curve"]):
        refused(tunesmith(command, "r", "prepare.source=typo.jsonl", *more), "typo.jsonl")
        assert kept.read_text() == before, command
    refused(tunesmith("finetune", "r", "evaluate.general=absent.jsonl"), "absent.jsonl")
    assert kept.read_text() == before
    assert tunesmith("prepare", "r")[0] == 0
    refused(tunesmith("prepare", "r", "prepare.max_tokens=8"), "max_tokens")
    assert "max_tokens: 8\n" in kept.read_text()  # that was tried
    refused(tunesmith("prepare", task(), "prepare.source=typo.jsonl", "--run", "new"), "typo.jsonl")
    assert not (tmp_path / "new" / "resolved.yaml").exists()


def test_patience_with_nothing_to_judge_by(tunesmith, task):
    settings = ("prepare.validation_fraction=0", "finetune.validation.patience=3")
    refused(tunesmith("initialise", task(), *settings), "finetune.validation.patience", "prepare.validation_fraction")


def test_a_report_of_nothing(tunesmith, tmp_path):
    refused(tunesmith("report", "typo"), "typo", "not the folder of a run")
    assert not (tmp_path / "typo").exists()
    (tmp_path / "other").mkdir()
    refused(tunesmith("report", "other"), "other", "not the folder of a run")
    page = tmp_path / "other" / "report.html"
    page.write_text("of somebody else")
    refused(tunesmith("report", "other"), "other", "not the folder of a run")
    assert page.read_text() == "of somebody else"


def test_a_recipe_below_a_file(tunesmith, task):
    refused(tunesmith("run", f"{task()}/x"), "not a recipe")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
    ],
)
def test_memory_that_runs_out(tunesmith, task, monkeypatch, error):
    def out(*_, **__):
        raise error

    monkeypatch.setattr("tunesmith.stages.pipeline.open_run", out)
    monkeypatch.setattr("tunesmith.cli.running.open_any", out, raising=False)
    refused(tunesmith("initialise", task()), "ran out of memory", "micro_batch")


def test_every_setting_can_be_explained(tunesmith):
    for path in (
        "prepare.source",
        "finetune.optimizer.learning_rate",
        "finetune.optimizer.betas",
        "finetune.optimizer.rates",
        "evaluate.graders",
        "prune.method",
        "finetune.validation.metric",
    ):
        code, printed, error = tunesmith("explain", path)
        assert (code, "Undefined" in printed) == (0, False), (path, printed, error)


@pytest.mark.parametrize("command", ["plan", "finetune"])
def test_a_rate_of_what_does_not_learn_is_refused_before_training(tunesmith, task, tmp_path, command):
    given = "finetune.optimizer={kind: adamw, rates: {'*.lora_Q': 8}}"
    refused(tunesmith(command, task(), given), "optimizer.rates", "*.lora_Q", "*.lora_A")
    assert not list(tmp_path.glob("runs/*/finetune-*"))


def test_a_preview_goes_where_the_run_is(tunesmith, task, tmp_path):
    assert tunesmith("data", "preview", task(), "--run", "elsewhere")[0] == 0
    assert (tmp_path / "elsewhere").is_dir()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["search", "showdown", "compare", "data-curve", "merge"])
def test_what_is_no_single_training_started_by_torchrun(tunesmith, task, monkeypatch, command):
    monkeypatch.setattr("tunesmith.cli.leave", sys.exit)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    more = ("--run", "x") if command == "merge" else ()
    refused(tunesmith(command, task(), *more), command, "torchrun", "`tunesmith run`")


def test_missing_recipe(tunesmith):
    refused(tunesmith("run", "absent.yaml"), "absent.yaml", "no such file")


def test_broken_yaml(tunesmith, tmp_path):
    (tmp_path / "bad.yaml").write_text("prepare:\n  source: [a\n")
    refused(tunesmith("run", "bad.yaml"), "bad.yaml:", "YAML")


def test_recipe_that_is_a_list(tunesmith, tmp_path):
    (tmp_path / "bad.yaml").write_text("- prepare\n")
    refused(tunesmith("run", "bad.yaml"), "bad.yaml", "mapping")


def test_required_field_missing(tunesmith, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: smollm2-135m\n")
    refused(tunesmith("run", "bad.yaml"), "prepare", "required")


def test_empty_data(tunesmith, task, tmp_path):
    recipe = task()
    (tmp_path / "rows.jsonl").write_text("")
    refused(tunesmith("prepare", recipe), "rows.jsonl")


def test_malformed_lines(tunesmith, task, tmp_path):
    recipe = task()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(GOOD) + "\n{broken\n" for _ in range(5)))
    refused(tunesmith("prepare", recipe), "rows.jsonl:2", "not valid JSON")


def test_rows_of_no_known_format(tunesmith, task, tmp_path):
    recipe = task()
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "a": "b"}\n' * 5)
    refused(tunesmith("prepare", recipe), "rows.jsonl:1", "messages")


def test_model_that_is_no_decoder(tunesmith, task, tmp_path, tiny_folder):
    folder = tmp_path / "bert"
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny_folder / name).read_bytes())
    refused(tunesmith("initialise", task(model=str(folder))), "bert", "not a decoder")


def test_damaged_weights(tunesmith, task, tmp_path, tiny_folder):
    folder = tmp_path / "cut"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(tunesmith("initialise", task(model=str(folder))), "cut", "weights")


def test_folder_that_cannot_be_written(tunesmith, task):
    refused(tunesmith("prepare", task(), "--run", "/proc/tunesmith"), "/proc/tunesmith", "--run")


def test_unknown_command_and_option(tunesmith):
    refused(tunesmith("finetuen", "x.yaml"), "finetuen")
    refused(tunesmith("run", "x.yaml", "--runn", "y"), "--runn")


def test_show_of_something_else(tunesmith, tmp_path):
    refused(tunesmith("show", str(tmp_path)), "not the folder of a run")


def test_explain_of_nothing(tunesmith):
    refused(tunesmith("explain", "objective.sftt"), "sftt", "sft")


def test_serve_before_deploy(tunesmith, task, tmp_path):
    assert tunesmith("prepare", task(), "--run", "r")[0] == 0
    refused(tunesmith("serve", "r"), "deploy")


def test_serve_without_its_packages(tunesmith, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tunesmith.serving.api", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    refused(tunesmith("serve", str(tmp_path)), "'fastapi' is not installed", "pip install", "[serve]")


def test_port_taken(tunesmith, task):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = tunesmith("run", task(), "--run", "r")
        assert code == 0, error
        refused(tunesmith("serve", "r", "--port", str(port)), str(port), "--port")


def test_too_little_memory(task, tmp_path):
    recipe = task(finetune={"batch": 40, "epochs": 1.0}, model="smollm2-135m", initialise={"adapter": {"kind": "full"}})
    result = _limited(
        ["initialise", recipe, "--run", "r"], tmp_path, lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
    )
    refused(result, "needs about", "GB", "finetune.optimizer.offload=true")


def test_disk_full_leaves_earlier_artifacts(task, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        result = _limited(["prepare", task(), "--run", str(disk / "r")], tmp_path)
        assert result[0] == 0, result
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file() and "prepare-" in str(path)}
        refused(_limited(["finetune", task(), "--run", str(disk / "r")], tmp_path), "disk", "full", "free some space")
        assert before
        assert all(path.read_bytes() == content for path, content in before.items())
    finally:
        subprocess.run(["umount", disk], check=True)


def _limited(arguments: list[str], folder: Path, limit=None) -> tuple[int, str, str]:
    """A command in a process of its own, under a limit."""
    done = subprocess.run(
        [sys.executable, "-c", "from tunesmith.cli import main; main()", *arguments],
        cwd=folder, preexec_fn=limit, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_an_older_model_is_not_served_in_silence(tmp_path, capsys):
    others = {"stage": "prepare", "folder": "prepare-of-another-run"}  # of a merged run
    made = Artifact(tmp_path / "deploy-a", {"parents": [{"stage": "finetune", "folder": "finetune-a"}, others]})
    for name in ("finetune-a", "finetune-b"):
        (tmp_path / "stages.json").write_text(json.dumps({"finetune": {"state": "done", "artifact": name}}))
        warn_of_age(tmp_path, made)
        assert ("was trained or measured again since" in " ".join(capsys.readouterr().err.split())) == (
            name == "finetune-b"
        )
