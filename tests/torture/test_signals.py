"""SIGTERM and SIGINT end a run wherever they meet it: what was done is kept, the exit status says so, and the same command goes on."""

import json
import os
import random
import signal
import time
from collections.abc import Callable

from bench import SAVE_EVERY, Bench, points
from faults import Ended, Fault

from tunesmith.base import Run
from tunesmith.base.artifact import MANIFEST
from tunesmith.training.checkpoint import load_newest

SEARCHED = [
    "search.trials=2",
    "search.early=0.4",
    "search.space={finetune.optimizer.learning_rate: {low: 0.001, high: 0.02, log: true}}",
]
"""What makes the training one whose settings are searched for."""
WHERE = {
    "prepare-": "prepare", "initialise-": "initialise", "trials/": "search", "search-": "search", "finetune-": "finetune", "evaluate-": "evaluate", "deploy-": "deploy",
    ".gguf": "deploy",
}  # fmt: skip
"""What the paths of stages' files hold, in the order of stages, with the stage; each is met by signals."""
LATER, LATER_IN_LAST = 0.5, 0.1
"""Seconds after a stage's first operation within which a signal arrives; the last stage of so small a run is soon over."""


def test_a_signal_ends_a_run_wherever_it_is(bench, tally, many):
    title = "a signal ends it: the step is saved, the status says so, the run goes on"
    counted, draw, checked = tally("R5", title, bench.subject.name), random.Random(5), list[str]()
    places = [*list(WHERE) * 3, *["finetune-"] * 3][: many(27, 0)]
    if bench.subject.name != "tunesmith":
        _peer(bench, counted.verdict, many(4, 1))
        return
    ways = _ways(bench, bool(places))
    for number, where in enumerate(places or ("prepare-", "finetune-")):
        sent = (signal.SIGTERM, signal.SIGINT)[number % 2]
        searched = bool(places) and (where in ("trials/", "search-") or number < len(WHERE))
        command, last, undisturbed, wanted = ways[searched]
        (one,) = points([each for each in undisturbed.operations if where in each.path], 1, draw)
        bench.begin()
        if number % 4 < 2:
            ended = bench.run(Fault("signal", one.place, signal=sent), command=command)
            assert ended.struck
        else:  # a while after the stage's first, in the midst of what is computed
            pause = draw.uniform(0, LATER_IN_LAST if WHERE[where] == last else LATER)
            ended = bench.run(command=command, during=_later(bench, where, pause, sent))
        wrong = _wrong(bench, ended, sent, WHERE[where], last, checked)
        again = bench.run(command=command)
        same = again.code == 0 and Run(bench.place / "run").artifact(last).id == wanted
        reason = f"{wrong}; again: exit {again.code}, {'same' if same else 'other'} content"
        at = f"{one.kind} {one.path}" if number % 4 < 2 else f"what follows {where}"
        counted.verdict(f"{sent.name} in {at}{', searched' * searched}", same and not wrong, ended.code != 0, reason)
    assert len(checked) >= many(4, 0), "hardly any signal met a training"


def _ways(bench: Bench, whole: bool) -> dict[bool, tuple[list[str], str, Ended, str]]:
    """Commands, by whether settings are searched for, each with its last stage, how it goes undisturbed, and what it then leaves."""
    python, how, code, stage, *rest = bench.subject.command(bench.place)
    run = [python, how, code, "run", *rest, "deploy.ungated=true", "deploy.gguf=f32"]
    commands = {True: [*run, *SEARCHED], False: run} if whole else {False: [python, how, code, stage, *rest]}
    found, last = {}, "deploy" if whole else "finetune"
    for searched, command in commands.items():
        bench.begin()
        undisturbed = bench.run(command=command)
        assert undisturbed.code == 0, undisturbed.said[-800:]
        found[searched] = command, last, undisturbed, Run(bench.place / "run").artifact(last).id
    return found


def _wrong(bench: Bench, ended: Ended, sent: signal.Signals, stage: str, last: str, checked: list[str]) -> str:
    """What is wrong with how it ended, the stage that was met by the signal having been done at least if it was not interrupted, and all of them if none was; `checked` gets the
    trainings under way whose last step was looked for."""
    if ended.code != 128 + sent:
        return f"exit {ended.code}; {ended.said.strip()[-200:]}"
    runs = [
        Run(bench.place / "run"),
        *(Run(path.parent) for path in (bench.place / "run").glob("trials/*/*/trial.json")),
    ]
    states = {name: state["state"] for run in runs for name, state in run.states.items()}
    own = {name: state["state"] for name, state in runs[0].states.items()}
    over = own.get(last) == "done"  # it met the report, say
    if not (over or "interrupted" in states.values()) or own.get(stage) not in ("interrupted", "done"):
        return f"{stage} is not interrupted: {states}"
    if {"running", "failed"} & set(own.values()):
        return f"a stage is said to go on, or to have failed: {own}"
    return next(filter(None, (_unsaved(run, "train-" if runs[1:] else "finetune-", checked) for run in runs)), "")


def _unsaved(run: Run, training: str, checked: list[str]) -> str:
    """Whether a step that was done is in no checkpoint. After a search `finetune` takes over what a trial learnt, and has no steps of its own."""
    steps = {one["artifact"]: one["step"] for one in run.events.read("step") if one["artifact"].startswith(training)}
    for name, last in steps.items():
        work = run.path / f"{name}.partial"
        if (run.path / name).exists() or (work / MANIFEST).exists():  # it is made, and needs no checkpoints
            continue
        newest = load_newest(work / "checkpoints", lambda _: None)
        checked.append(name)
        if newest is None or newest.step != last:
            return f"step {last} of {name} was done, the newest checkpoint is {newest and newest.step}"
    return ""


def _later(bench: Bench, where: str, pause: float, sent: signal.Signals) -> Callable[[int], None]:
    journal = bench.place.with_name(f"{bench.place.name}.trial") / "journal"

    def send(process: int) -> None:
        while not (journal.exists() and where in journal.read_text()):
            time.sleep(0.02)
        time.sleep(pause)
        os.kill(process, sent)

    return send


def _after_step(bench: Bench, step: int, sent: signal.Signals) -> Callable[[int], None]:
    output = bench.place.with_name(f"{bench.place.name}.trial") / "output"

    def send(process: int) -> None:
        while not (output.exists() and output.read_text().count("'loss'") >= step):
            time.sleep(0.002)
        os.kill(process, sent)

    return send


def _peer(bench: Bench, verdict: Callable[..., None], count: int) -> None:
    """The same of a peer's training, between two saves: what it prints of each step tells when."""
    for number in range(count):
        sent, step = (signal.SIGTERM, signal.SIGINT)[number % 2], SAVE_EVERY * (number + 2) + 1
        bench.begin()
        ended = bench.run(during=_after_step(bench, step, sent))
        shown = ended.said.count("'loss'")
        assert shown % SAVE_EVERY  # else it came too late to ask anything
        newest = bench.subject.checkpoints(bench.place)
        saved = (
            json.loads((newest[0] / "trainer_state.json").read_text())["global_step"]
            if newest and (newest[0] / "trainer_state.json").exists()
            else 0
        )
        right = ended.code in (128 + sent, -sent) and saved >= shown
        again = bench.run()
        held = right and again.code == 0 and bench.end() == bench.wanted
        reason = f"exit {ended.code}; {shown} steps done, {saved} saved; again: exit {again.code}"
        verdict(f"{sent.name} after step {shown}", held, ended.code != 0, reason)
