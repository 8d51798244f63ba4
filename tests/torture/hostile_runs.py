"""Hostile folders of runs: artifacts that name what is elsewhere, and links where something is written."""

import json
from collections.abc import Callable
from pathlib import Path

from tunesmith.base import Run
from tunesmith.base.artifact import commit
from tunesmith.base.files import digest, write_json
from tunesmith.models.load import load_tokenizer
from tunesmith.serving.log import RequestLog
from tunesmith.serving.settings import RequestLogging
from tunesmith.stages.pipeline import LOG


def run_folder(harm: Callable[[Path], object]) -> Callable[[Path], object]:
    """A run with a sealed artifact, and something done to it."""

    def make(folder: Path) -> None:
        work = folder / "run" / "deploy-0.partial"
        work.mkdir(parents=True)
        (work / "a.txt").write_text("a")
        facts = {"stage": "deploy", "version": 1, "spec": {}, "context": {}, "inputs": [], "parents": [], "metrics": {}}
        commit(work, folder / "run" / "deploy-0", facts)
        write_json(folder / "run" / "stages.json", {"deploy": {"state": "done", "artifact": "deploy-0"}})
        harm(folder / "run")

    return make


def manifest_names(name: str) -> Callable[[Path], object]:
    def harm(run: Path) -> None:
        (run / "secret").write_text("a")
        path = run / "deploy-0" / "manifest.json"
        found = json.loads(path.read_text())
        del found["seal"]
        found["files"][name.format(run)] = next(iter(found["files"].values()))
        write_json(path, {**found, "seal": digest(found)})

    return harm


def linked(run: Path) -> None:
    (run / "deploy-0" / "a.txt").rename(run / "a.txt")
    (run / "deploy-0" / "a.txt").symlink_to(run / "a.txt")


def led_away(name: str, target: str) -> Callable[[Path], object]:
    """A run that holds a link where something is written: to a file or a folder beside it, or to what is not there yet."""

    def harm(run: Path) -> None:
        (run.parent / "precious").write_text("precious")
        (run.parent / "cellar").mkdir()
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(run.parent / target)

    return run_folder(harm)


def worked_in(folder: Path) -> object:
    """What every stage does first in a run's folder."""
    run = Run(folder / "run")
    with run.lock():
        run.events.write("begun")
        (run.path / "X.partial").mkdir(exist_ok=True)
        (run.path / "X.partial" / "rows").write_text("rows")
    return run


def logged(folder: Path) -> object:
    """What a server does first with its log."""
    return RequestLog(folder / "run" / LOG, RequestLogging())


def stages(name: str) -> Callable[[Path], object]:
    return lambda run: write_json(
        run / "stages.json", {"deploy": {"state": "done", "artifact": name.format(run.parent)}}
    )


def deployed(folder: Path) -> object:
    return load_tokenizer(str(folder / "run"))
