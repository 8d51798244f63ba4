"""R11: a training that is cut off in its second epoch or later goes on to the same bits, whatever in it draws random numbers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from subjects import STEPS, Peer, Subject, Tunesmith

from tunesmith.base import Run
from tunesmith.methods.optimizers import Optimizer
from tunesmith.stages import tuning
from tunesmith.stages.pipeline import Pipeline
from tunesmith.stages.recipe import read_recipe
from tunesmith.training import loop

EPOCH = 8
"""Optimizer steps of an epoch."""
CUTS = (11, 15, 22)
"""Steps after which it is cut off: in the second epoch and the third, right after a checkpoint and long after."""
PAID = {"rewards": [{"grader": {"kind": "chrf"}}], "samples": 3, "max_tokens": 4}
NO_DROPOUT = {"initialise.adapter.dropout": 0.0}
PRUNED: dict[str, Any] = {"prune.method.kind": "magnitude", "prune.recovery": {"epochs": 3.0, "batch": 4, "checkpoint_every": 3}}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "NEFTune, label smoothing, balance": {
        "finetune.objective.noise": 5.0, "finetune.objective.label_smoothing": 0.1, "finetune.balance.power": 0.5, "prepare.classes": "answer",
    },
    "ppo": {**NO_DROPOUT, "finetune.objective.kind": "ppo", "finetune.rollouts": {**PAID, "updates": 1}},
    "hybrid": {"finetune.optimizer.kind": "hybrid", "finetune.optimizer.base_rate": 1e-3},
    "grpo": {**NO_DROPOUT, "finetune.objective.kind": "grpo", "finetune.rollouts": PAID, "finetune.objective.beta": 0.1},
    "ppo, two updates": {**NO_DROPOUT, "finetune.objective.kind": "ppo", "finetune.rollouts": {**PAID, "updates": 2}, "finetune.epochs": 1.5},
    "distill": {"finetune.objective.kind": "distill", "finetune.objective.top": 4},
    "search": {"search.trials": 2, "search.sampler": "random", "search.space": {"finetune.optimizer.learning_rate": {"low": 1e-3, "high": 1e-2}}},
    "prune, recovery": PRUNED,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "prune, recovery of channels": {**PRUNED, "prune.method.kind": "channels", "prune.method.share": 0.5},
    "micro-batches": {"finetune.micro_batch": 1, "finetune.validation.every": 5},
    "early stop": {"finetune.validation.every": 5, "finetune.validation.patience": 2, "finetune.optimizer.learning_rate": 0.05},
    "layers computed again": {"finetune.activation_checkpointing": True},
    **{f"adapter {kind}": {"initialise.adapter": {"kind": kind}} for kind in ("full", "dora", "moe", "prefix", "memory", "half")},
    **{f"precision {one}": {"precision": one} for one in ("bf16", "int8", "nf4")},
    **{f"optimizer {one().kind}": {"finetune.optimizer.kind": one().kind} for one in Optimizer.members() if one().kind not in ("adamw", "hybrid")},
    "optimizer adamw, moments in a file": {"finetune.optimizer.offload": True, "initialise.adapter": {"kind": "full"}},
}  # fmt: skip
STAGES = {"search": "search", "prune, recovery": "prune", "prune, recovery of channels": "prune"}


class CutOff(BaseException):
    """Ends a training as a kill would: nothing of ours may catch it."""


def cut_after(steps: int) -> Any:
    """The loop as it is, which ends after so many steps of one training, from the third epoch of pruning's recovery for example."""

    def train(*given: Any, **named: Any) -> Iterator[loop.Step]:
        for step in loop.train(*given, **named):
            yield step
            if step.number + 1 == steps:
                raise CutOff

    return train


def settle(folder: Path, model: Path, settings: dict[str, Any]) -> Path:
    """A recipe with these settings, without what a kind of before says of another."""
    Tunesmith().set_up(folder, model)
    path = folder / "recipe.yaml"
    tree = json.loads(path.read_text())
    for where, value in settings.items():
        *sections, name = where.split(".")
        below = tree
        for section in sections:
            below = below.setdefault(section, {})
        below[name] = value
    if tree["finetune"]["optimizer"].get("kind") == "mezo":
        tree["finetune"]["optimizer"]["learning_rate"] = 1e-3
    path.write_text(json.dumps(tree))
    return path


def course(folder: Path, stage: str) -> tuple[dict[str, str], dict[int, float]]:
    """sha256 of what a stage left, and the loss of each step as it was last taken."""
    made = Run(folder).artifact(stage)
    files = {name: one["sha256"] for name, one in made.manifest["files"].items() if name.endswith(".safetensors")}
    events = Run(folder).events.tagged(artifact=made.path.name).read("step")
    return files, {event["step"]: event["loss"] for event in events}


def go_on(stage: str, recipe: Path, run: Path) -> None:
    """A stage in a process of its own, which knows nothing of what came before but what the run's folder says."""
    command = [sys.executable, "-c", "from tunesmith.cli import main; main()", stage, str(recipe), "--run", str(run)]
    done = subprocess.run(command, env=Tunesmith().environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def ours(way: str, cuts: tuple[int, ...], folder: Path, model: Path, counted: Any, patch: pytest.MonkeyPatch) -> None:
    """An undisturbed run, then ones that are cut off, each going on from a copy of what comes before training; where numbers are drawn, in a new process."""
    path, stage = settle(folder, model, (WAYS | METHODS)[way]), STAGES.get(way, "finetune")
    recipe = read_recipe(path)
    before = {"search": "prepare", "prune": "finetune"}.get(stage, "initialise")
    Pipeline(recipe, Run(folder / "begun")).locked(before)
    shutil.copytree(folder / "begun", folder / "whole")
    Pipeline(recipe, Run(folder / "whole")).locked(stage)
    expected = course(folder / "whole", stage)
    assert expected[0]
    for cut in cuts:
        run = Run(folder / f"cut-{cut}")
        shutil.copytree(folder / "begun", run.path)
        patch.setattr(tuning, "train", cut_after(cut))
        with pytest.raises(CutOff):
            Pipeline(recipe, run).locked(stage)
        patch.undo()
        if way in WAYS:
            go_on(stage, path, run.path)
        else:
            Pipeline(recipe, run).locked(stage)
        resumed = [event["step"] for file in run.path.rglob("events.jsonl") for event in run.events.__class__(file).read("resumed")]  # fmt: skip
        assert resumed, (way, cut)
        assert EPOCH <= max(resumed) <= cut, (way, cut)
        found = course(run.path, stage)
        differ = sorted(name for name in expected[0] if found[0].get(name) != expected[0][name])
        counted.verdict(f"{way}: cut after step {cut}", found == expected, reason=f"differ: {differ}")


def theirs(peer: Peer, way: str, cuts: tuple[int, ...], folder: Path, model: Path, counted: Any) -> None:
    """The same of a peer, whose process is killed after a step, started again, and finds its last checkpoint."""
    script = Path(__file__).with_name("peer_draws.py")

    def trained(name: str, cut: int) -> int:
        if not (folder / name).exists():
            peer.set_up(folder / name, model)
        command = peer.command(folder / name)
        command = [command[0], str(script), way, str(cut), *command[2:]]
        done = subprocess.run(command, env=peer.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == (-9 if cut else 0), done.stderr[-2000:]
        return done.returncode

    trained("whole", 0)
    expected = peer.result(folder / "whole")
    for cut in cuts:
        trained(f"cut-{cut}", cut)
        assert peer.checkpoints(folder / f"cut-{cut}")
        trained(f"cut-{cut}", 0)
        same = peer.result(folder / f"cut-{cut}") == expected != {}
        counted.verdict(f"{way}: killed after step {cut}", same, reason="ended well, with other weights")


def test_it_goes_on_to_the_same_bits(subject: Subject, tally, tiny_folder, tmp_path, many, monkeypatch):
    assert STEPS == 3 * EPOCH
    counted = tally(
        "R11", "cut off in epoch 2 or later: goes on to the same bits, whatever draws random numbers", subject.name
    )
    if isinstance(subject, Peer):
        for way in ("dropout", "collator")[-many(2, 1) :]:
            theirs(subject, way, CUTS[: many(2, 1)], tmp_path / way, tiny_folder, counted)
        return
    for number, way in enumerate(list(WAYS)[: many(len(WAYS), 2)]):
        cut = CUTS[-1] if "two updates" in way else CUTS[number % len(CUTS)]
        ours(way, (cut,), tmp_path / str(number), tiny_folder, counted, monkeypatch)


def test_every_method_goes_on_to_the_same_bits(tally, tiny_folder, tmp_path, many, monkeypatch):
    counted = tally(
        "R11-methods",
        "every optimizer, and adapters and precisions: cut off in epoch 2 or later, goes on to the same bits",
    )
    for number, way in enumerate(list(METHODS)[: many(len(METHODS), 0)] or ["micro-batches"]):
        cut = CUTS[0] if way == "early stop" else CUTS[number % len(CUTS)]
        ours(way, (cut,), tmp_path / str(number), tiny_folder, counted, monkeypatch)
