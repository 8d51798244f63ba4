"""R7: a number that is not finite is never learnt: the step is not applied, its rows are named, the last checkpoint is sound, and the command does not end with 0."""

import os
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from subjects import Peer, Subject, Tunesmith, demonstrations, write_rows
from wrong_numbers import PLACES, Fault

from tunesmith.base import ModelError, Run
from tunesmith.base.spec import validate
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.prepared import load_split
from tunesmith.grading.exact import Exact
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers import Optimizer
from tunesmith.models.heads import attach_head
from tunesmith.models.load import load, not_finite
from tunesmith.stages import tuning
from tunesmith.stages.pipeline import Pipeline
from tunesmith.stages.prepare import STAGE, Prepare, input_files
from tunesmith.stages.recipe import read_recipe
from tunesmith.training import checkpoint
from tunesmith.training.loop import NotFinite
from tunesmith.training.rollouts import Tries

HERE = Path(__file__).parent
NAN, INF = float("nan"), float("inf")
SPOILT = [(place, value) for value in (NAN, INF, -INF) for place in PLACES]


def finite(folder: Path) -> bool:
    """Whether every tensor that a folder holds is."""
    files = list(folder.rglob("*.safetensors"))
    return bool(files) and all(not_finite(load_file(file)) is None for file in files)


def armed(subject: Subject, folder: Path, place: str, value: float, at: int) -> list[str]:
    """The command with a fault in it."""
    command, fired = subject.command(folder), str(folder / "fired")
    if isinstance(subject, Peer):
        return [command[0], str(HERE / "peer_faults.py"), place, str(value), str(at), fired, *command[2:]]
    code = f"import wrong_numbers; wrong_numbers.arm({place!r}, '{value}', {at}, {fired!r}); {command[2]}"
    return [*command[:2], code, *command[3:]]


def ended(subject: Subject, folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """How it went; the fault must have happened."""
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH", ""))))
    variables = {**subject.environment(), "PYTHONPATH": paths}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (folder / "fired").exists(), done.stderr[-2000:]
    return done


def left(subject: Subject, folder: Path) -> list[Path]:
    """What would be used: what was learnt, and the checkpoint from which it would go on."""
    if subject.result(folder):
        return [folder / "done"] if isinstance(subject, Peer) else [Run(folder / "run").artifact("finetune").path]
    return subject.checkpoints(folder)[:1]


def test_a_run_stops_and_leaves_what_is_sound(subject: Subject, tally, tiny_folder, tmp_path, many):
    counted = tally("R7", "nan or infinity in a run: nothing that is not finite is kept or ends well", subject.name)
    places = [(p, v) for p, v in SPOILT if p != "data" or subject.name == "tunesmith"]  # its rows have no weight
    trials = [(p, v, at) for at in (4, 17) for p, v in places]
    for place, value, at in trials[: many(len(trials), 1)]:
        folder = tmp_path / f"{place}-{value}-{at}"
        subject.set_up(folder, tiny_folder)
        done = ended(subject, folder, armed(subject, folder, place, value, at))
        kept = left(subject, folder)
        sound = bool(kept) and all(map(finite, kept))
        named = subject.name != "tunesmith" or ("not finite" in done.stderr and done.returncode == 2)
        rows = place == "state" or subject.name != "tunesmith" or "rows.jsonl:" in done.stderr
        said = done.stderr[-250:] if done.returncode else "ended with 0; what it learnt is not finite"
        counted.verdict(f"{place} {value} at step {at}", sound and named and rows, done.returncode != 0, said)


def test_a_run_that_may_leave_steps_out_counts_them(tally, tiny_folder, tmp_path, many, monkeypatch):
    """Also where it was stopped after such a step and went on."""
    counted = tally("R7-skip", "steps that are not finite are left out, counted and named, no more than allowed")
    for allowed, place in ((1, "loss"), (1, "gradient"), (0, "loss"), (1, "twice"))[: many(4, 1)]:
        folder = tmp_path / f"{place}-{allowed}"
        Tunesmith().set_up(folder, tiny_folder)
        recipe = read_recipe(folder / "recipe.yaml", (f"finetune.skip_not_finite={allowed}",))
        fault = Fault("loss" if place == "twice" else place, NAN, 5)
        monkeypatch.setattr(tuning, "train", fault.train)
        if place == "twice":
            monkeypatch.setattr(tuning, "train", partial(Fault("loss", NAN, 16).train, inner=fault.train))
        try:
            made = Pipeline(recipe, Run(folder / "run")).locked("finetune")
        except NotFinite as error:
            newest = Tunesmith().checkpoints(folder)[:1]
            expected = 15 if place == "twice" else 3
            at = f"step-{expected:08d}"
            counted.verdict(f"{place}: {allowed} allowed", newest[0].name == at and "rows.jsonl:" in str(error), True)
            assert allowed == 0 or place == "twice"
            continue
        (event,) = Run(folder / "run").events.read("skipped")
        told = event["step"] == 6 and "rows.jsonl:" in event["reason"]
        counts = made.metrics["skipped_steps"] == 1 and made.metrics["steps"] == 24
        counted.verdict(f"{place}: {allowed} allowed", bool(fault.fired) and finite(made.path) and told and counts)


ROUNDS = 6


def trained(tiny, rows, spec: Optimizer, fault: Fault, folder: Path, skips: int = 0):
    """Some steps with a fault, saved after each; weights before the step that it struck and after, and what was raised."""
    loaded = tiny()
    LoRA(rank=4, dropout=0.1).attach(loaded, 1)
    learnt = trainable(loaded.model)
    frozen = {name: one for name, one in loaded.model.named_parameters() if name not in learnt}
    optimizer, before, raised = spec.over(learnt, frozen), {}, None
    every = {**learnt, **frozen}
    batches = ([Batch.of(rows[place % 7 : place % 7 + 3])] for place in range(ROUNDS))
    try:
        for step in fault.train(loaded, SFT(), batches, optimizer, lambda _: 1.0, seed=0, skips=skips):
            if step.number == fault.at and step.skipped:
                raised = step.skipped
                assert all(torch.equal(one, before[name]) for name, one in every.items())
            before = {name: one.detach().clone() for name, one in every.items()}
            checkpoint.save(folder, step.number + 1, learnt, optimizer, {})
    except ModelError as error:
        raised = str(error)
    return learnt, every, before, raised


def test_no_optimizer_takes_such_a_step(tally, tiny, random_rows, tmp_path, many):
    counted = tally("R7-methods", "no optimizer applies or keeps a step with nan or infinity in it")
    members = [member() for member in Optimizer.members()]
    steps = (1, 3, 5)[: many(3, 1)]
    for spec in members:
        stateless = not (spec.gradients and spec.state_bytes({"w": torch.nn.Parameter(torch.ones(64, 64))}))
        for place, value in SPOILT[: many(len(SPOILT), len(PLACES))]:
            if (place == "state" and stateless) or (place == "gradient" and not spec.gradients):
                continue
            for at in steps:
                name = f"{spec.kind}: {place} {value} at step {at}"
                fault, folder = Fault(place, value, at), tmp_path / name.replace(" ", "-")
                _, every, before, raised = trained(tiny, random_rows(10), spec, fault, folder)
                assert fault.fired, name
                newest = checkpoint.load_newest(folder, pytest.fail)
                said = raised is not None and "not finite" in raised
                names_rows = place == "state" or (raised is not None and "random:" in raised)
                same = place in ("weight", "state") or all(torch.equal(one, before[key]) for key, one in every.items())
                kept = newest is not None and finite(newest.path) and at <= newest.step <= at + 1
                counted.verdict(name, said and names_rows and same and kept, raised is not None, str(raised))


def test_a_step_left_out_moves_nothing(tally, tiny, random_rows, tmp_path, many):
    counted = tally("R7-left-out", "a step left out moves no weight, and training goes on")
    for spec in [member() for member in Optimizer.members()][: many(99, 4)]:
        place = "gradient" if spec.gradients else "loss"
        fault = Fault(place, NAN, 3)
        learnt, _, before, raised = trained(tiny, random_rows(10), spec, fault, tmp_path / spec.kind, skips=1)
        newest = checkpoint.load_newest(tmp_path / spec.kind, pytest.fail)
        moved = any(not torch.equal(one, before[name]) for name, one in learnt.items())
        assert fault.fired
        counted.verdict(spec.kind, bool(raised) and newest.step == ROUNDS and finite(newest.path) and not moved)


def test_every_objective_is_guarded(tally, tiny, tmp_path, answered):
    """Two answers a row, with every column that an objective may read."""
    counted = tally("R7-objectives", "weights that are not finite are told by every objective's loss")
    for member in Objective.members():
        loaded = tiny()
        if member.head:
            attach_head(loaded)
        with torch.no_grad():
            loaded.model.model.layers[0].mlp.up_proj.weight[0, 0] = NAN
        optimizer = Optimizer.member("adamw")().build(trainable(loaded.model))
        fault = Fault("none", NAN, 0)
        try:
            list(fault.train(loaded, member(), [[Batch.of(answered)]], optimizer, lambda _: 1.0, seed=0))
            said = ""
        except NotFinite as error:
            said = str(error)
        counted.verdict(member().kind, "random:1" in said, reason=said)


def test_a_base_that_is_not_finite_is_refused_by_the_name_of_its_tensor(tally, tiny_folder, tmp_path, many):
    counted = tally("R7-models", "a base, or a reward, that is not finite is refused by name")
    weights = load_file(tiny_folder / "model.safetensors")
    names = sorted(weights)[:: many(1, 7)]
    for name in names:
        for value in (NAN, INF, -INF):
            folder = tmp_path / f"{name}-{value}"
            folder.mkdir()
            for file in tiny_folder.iterdir():
                (folder / file.name).symlink_to(file)
            (folder / "model.safetensors").unlink()
            spoilt = {**weights, name: weights[name].clone()}
            spoilt[name].view(-1)[-1] = value
            save_file(spoilt, folder / "model.safetensors", {"format": "pt"})
            precision = ("fp32", "bf16", "nf4")[names.index(name) % 3]
            try:
                load(str(folder), precision)
                said = ""
            except ModelError as error:
                said = str(error)
            counted.verdict(f"{name} {value} {precision}", name.removeprefix("model.") in said, reason=said)
    for value in (NAN, INF):
        tries = validate(Tries, {"rewards": [{"grader": {"kind": "exact"}, "weight": 1.0}]}, "r.yaml")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Exact, "worth", lambda self, answers, examples, value=value: [0.5, value])
            asked = [Example(f"train.jsonl:{n}", ({"role": "user", "content": "?"},)) for n in (1, 2)]
            try:
                tries.earned(["a", "b"], asked)
                said = ""
            except ModelError as error:
                said = str(error)
        counted.verdict(f"reward {value}", "train.jsonl:2" in said, reason=said)


WRITTEN = {".jsonl": ("NaN", "Infinity", "-Infinity", "1e999", "1e39", '"nan"', '"inf"', "null"), ".csv": ("nan", "inf", "-inf", "1e999", "1e39", "NaN")}  # fmt: skip


def test_a_number_in_the_data_that_is_not_finite_is_quarantined(tally, tmp_path, many):
    counted = tally("R7-data", "a row whose weight or column is not finite is quarantined by file and line")
    for ending, numbers in WRITTEN.items():
        for number in numbers[: many(99, 1)]:
            for field in ("weight", "margin") if many(1, 0) else ("weight",):
                folder = tmp_path / f"{field}-{number.strip(chr(34))}{ending}"
                folder.mkdir()
                file = folder / f"rows{ending}"
                write_numbers(file, field, number)
                settings = {"weight": "weight"} if field == "weight" else {"columns": ["margin"]}
                tree = {"source": str(file), "test_fraction": 0, "validation_fraction": 0, "cleaners": [], **settings}
                spec = validate(Prepare, tree, "recipe.yaml")
                made = Run(folder / "run").once(
                    STAGE, spec, inputs=input_files(spec), tokenizer_name="smollm2-135m", seed=0
                )
                rows = load_split(made.path, "train")
                line = 4 if ending == ".jsonl" else 5
                ledger = (made.path / "ledger.jsonl").read_text() if (made.path / "ledger.jsonl").exists() else ""
                held = len(rows) == 11 and all(np.isfinite(list(row.columns.values())).all() for row in rows)
                named = any(f"{file.name}:{line}" in one and "quarantined" in one for one in ledger.splitlines())
                counted.verdict(
                    f"{ending} {field} {number}", held and named, reason=f"{len(rows)} rows; {ledger[:200]}"
                )


def write_numbers(file: Path, field: str, number: str) -> None:
    """Twelve rows with a number each, the fourth as given."""
    if file.suffix == ".csv":
        lines = [f"Shade {n}?,red,{number if n == 3 else 1.0}" for n in range(12)]
        file.write_text("\n".join((f"prompt,completion,{field}", *lines)) + "\n")
        return
    write_rows(file, [{**row, field: 1.0} for row in demonstrations(12)])
    lines = file.read_text().splitlines()
    lines[3] = lines[3].replace(f'"{field}": 1.0', f'"{field}": {number}')
    file.write_text("\n".join(lines) + "\n")
