"""A run is a folder; `Run.once` computes a stage unless the same stage, spec and parents were computed there before."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .artifact import MANIFEST, Artifact, commit, environment, manifest_of, name_of, settled
from .errors import ArtifactError, BusyError, Interrupted, MachineError
from .events import Events
from .files import UNFINISHED, known_sha256, read_json, room, write_json
from .secrets import redacted
from .spec import Spec

LOCK = ".lock"
"""In a run's folder, the file that the process at work holds; it says which that is."""


@dataclass(frozen=True)
class Stage:
    """A named, versioned function `(spec, *parents, out=Output, **context) -> None`.

    Raise `version` whenever the same inputs would now give another result.
    """

    name: str
    version: int
    function: Callable[..., None]


@dataclass
class Output:
    """Where a stage writes: files below `path`, figures into `metrics`, progress into `events` (which carry the artifact's name).

    `path` survives a kill: a stage that finds its own earlier work there may go on from it.
    """

    path: Path
    events: Events
    metrics: dict[str, Any] = field(default_factory=dict)
    scratch: tuple[str, ...] = ()
    """Folders that a killed attempt goes on from, and that go when the artifact is whole."""

    def __truediv__(self, name: str) -> Path:
        return self.path / name


class Run:
    """The folder of one run: its artifacts, its events, and which artifact stands for each stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = Events(path / "events.jsonl")
        self._verified: dict[Path, Artifact] = {}

    @property
    def states(self) -> dict[str, dict[str, Any]]:
        """Per stage: `state` (running, done, failed, interrupted), `artifact` (folder name), `seconds`, `error`, and `done`, the folder that was finished before."""
        path = self.path / "stages.json"
        try:
            found: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
            whole = all("state" in state and "artifact" in state for state in found.values())
        except (ValueError, AttributeError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise ArtifactError(f"{path}: is damaged; delete it and run again: what is finished is found by itself")
        return found

    def artifact(self, stage: str) -> Artifact:
        """The newest finished artifact of a stage, verified.

        Raises:
            ArtifactError: the stage has not finished in this run.
        """
        state = self.states.get(stage, {})
        if state.get("state") != "done":
            more = "; if the gate did not promote this model, set deploy.ungated=true to deploy it all the same"
            raise ArtifactError(
                f"{self.path}: stage {stage!r} is {state.get('state', 'not started')}; run `tunesmith run` first{more if stage == 'deploy' else ''}"
            )
        return self._of(stage, state["artifact"])

    def last(self, stage: str) -> Artifact:
        """The artifact of a stage that was finished last, verified, though a later attempt may have been refused, or be under way.

        Raises:
            ArtifactError: the stage has never finished in this run.
        """
        folder = finished(self.states.get(stage, {}))
        return self.artifact(stage) if folder is None else self._of(stage, folder)

    def _of(self, stage: str, folder: str) -> Artifact:
        found = self.open(folder)
        if found.manifest["stage"] != stage:
            raise ArtifactError(
                f"{self.path / 'stages.json'}: says that {found.path.name} is of {stage!r}; delete it and run again"
            )
        return found

    def open(self, folder: str) -> Artifact:
        """A finished artifact by its folder's name, verified to be the one that is called so.

        Raises:
            ArtifactError: it is missing or damaged, or holds what was made under another name.
        """
        if Path(folder).name != folder:
            raise ArtifactError(f"{self.path}: {folder!r} is no folder in it; give a run as tunesmith wrote it")
        found = Artifact.open(self.path / folder)
        if (name := name_of(found.manifest)) != folder:
            raise ArtifactError(
                f"{found.path}: holds what was made as {name}; delete {found.path} and run again to make it anew"
            )
        return found

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """What the artifact of a stage says of itself; None unless its last attempt finished, or where it is damaged. Its files are not looked at."""
        state = self.states.get(stage, {})
        found = manifest_of(self.path / state["artifact"]) if state.get("state") == "done" else None
        return found if found is not None and name_of(found) == state["artifact"] else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against other processes; the lock of a dead process does not count.

        Raises:
            BusyError: another process works here.
            ArtifactError: the folder cannot be written, or holds a link: what is written here would be written somewhere else.
            MachineError: the disk is full.
        """
        self._check_links()
        try:
            with room(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                handle = (self.path / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"{self.path}: cannot write here ({error.strerror}); choose another folder with --run"
            ) from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read().strip() or "another process"
                raise BusyError(f"{self.path}: {owner} is working here; wait for it or choose another --run") from None
            except OSError as error:
                raise ArtifactError(
                    f"{self.path}: its file system locks no files ({error.strerror}); choose a folder elsewhere with --run"
                ) from None
            owner = f"process {os.getpid()} on {socket.gethostname()}"
            with room(self.path / LOCK):
                os.truncate(handle.fileno(), 0)
                os.write(handle.fileno(), owner.encode())  # not the handle, which would try once more when it is closed
            yield

    def _check_links(self) -> None:
        links = [path for path in sorted(self.path.glob("*")) if path.is_symlink()]
        if links:
            raise ArtifactError(f"{links[0]}: is a link, and a run's folder holds none; delete it")

    def check_free(self) -> None:
        """Find out at once, before anything is loaded that takes time, that another process works here.

        Raises:
            BusyError: it does.
        """
        if (self.path / LOCK).exists():
            with self.lock():
                pass

    def once(
        self, stage: Stage, spec: Spec, *parents: Artifact, inputs: tuple[Path, ...] = (), **context: Any
    ) -> Artifact:
        """Return the artifact of `stage` for exactly these inputs, computing it only if it is not there and valid.

        Args:
            stage: what to compute.
            spec: its settings.
            parents: artifacts it reads; their content is part of the key.
            inputs: the user's files it reads; their content is part of the key.
            context: further JSON values the stage takes by name; part of the key.
        """
        facts = {
            "stage": stage.name,
            "version": stage.version,
            "spec": spec.model_dump(mode="json"),
            "context": context,
            "inputs": [{"name": path.name, "sha256": known_sha256(path)} for path in inputs],
            "parents": [
                {"stage": parent.manifest["stage"], "folder": parent.path.name, "id": parent.id} for parent in parents
            ],
        }
        facts = json.loads(json.dumps(facts))  # as a manifest gives them back
        final = self.path / name_of(facts)
        if final in self._verified:
            return self._verified[final]
        found = self._valid(final)
        if found:
            self._verified[final] = found
            state = self.states.get(stage.name, {})
            if state.get("artifact") != final.name or state["state"] != "done":
                self._note(stage.name, state="done", artifact=final.name, seconds=found.manifest["seconds"])
            self.events.write("cached", stage=stage.name, artifact=final.name)
            return found
        return self._compute(stage, spec, parents, context, facts, final)

    def _valid(self, folder: Path) -> Artifact | None:
        if not folder.exists():
            return None
        try:
            return self.open(folder.name)
        except (ArtifactError, IsADirectoryError, NotADirectoryError, FileNotFoundError) as error:
            self.events.write("damaged", artifact=folder.name, reason=str(error))
            return None

    def _compute(
        self,
        stage: Stage,
        spec: Spec,
        parents: tuple[Artifact, ...],
        context: dict[str, Any],
        facts: dict[str, Any],
        final: Path,
    ) -> Artifact:
        work = self.path / f"{final.name}.partial"
        out = Output(work, self.events.tagged(artifact=final.name))
        start, spent = time.monotonic(), out.events.spent
        with self._told(stage.name, final.name), room(work):
            work.mkdir(parents=True, exist_ok=True)
            for left in [path for path in work.rglob(".*") if UNFINISHED.fullmatch(path.name)]:
                left.unlink()
            self._note(stage.name, state="running", artifact=final.name)
            self.events.write("started", stage=stage.name, artifact=final.name)
            made = settled(work, final, facts)
            if made is None:
                (work / MANIFEST).unlink(missing_ok=True)
                stage.function(spec, *parents, out=out, **context)
                seconds = round(spent + time.monotonic() - start, 2)
                extra = {"metrics": out.metrics, "seconds": seconds, "environment": environment()}
                made = commit(work, final, {**facts, **extra}, out.scratch)
            told = {"artifact": final.name, "seconds": made.manifest["seconds"]}
            self._note(stage.name, state="done", **told)
            self.events.write("done", stage=stage.name, **told, metrics=made.metrics)
        self._verified[final] = made
        return made

    @contextmanager
    def _told(self, stage: str, artifact: str) -> Iterator[None]:
        """Within this block what ends a stage early is noted, as its state and as an event."""
        try:
            yield
        except BaseException as error:
            state = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
            reason = redacted(str(error) or type(error).__name__)
            with suppress(MachineError):  # a disk that is full may have no room for this either
                self._note(stage, state=state, artifact=artifact, error=reason)
                self.events.write(state, stage=stage, artifact=artifact, reason=reason)
            raise

    def interrupted(self, stage: str) -> None:
        """Note that a stage was interrupted before its own work began: while torch was loaded, say, or memory planned."""
        before = self.states.get(stage, {})
        if before.get("state") not in ("done", "interrupted"):
            self._note(stage, **{"artifact": stage, **before, "state": "interrupted"})
            self.events.write("interrupted", stage=stage)

    def _note(self, stage: str, **state: Any) -> None:
        states = self.states
        before = finished(states.get(stage, {}))
        if state["state"] != "done" and before is not None:
            state["done"] = before
        write_json(self.path / "stages.json", {**states, stage: state})


def finished(state: dict[str, Any]) -> str | None:
    """The folder that a stage in this state finished last, if it ever did."""
    return state["artifact"] if state.get("state") == "done" else state.get("done")


def run_of(given: Path, folder: Path | None = None) -> Run:
    """The run in a folder, if one is given; else that of a recipe (`runs/NAME`), or of its own folder."""
    return Run(folder or (given if given.is_dir() else Path("runs") / given.stem))


def deployed(name: str) -> Artifact | None:
    """What a run deployed last, where a model is named by the run's folder; None where it is named otherwise.

    Raises:
        ArtifactError: the run deployed nothing.
    """
    folder = Path(name).expanduser()
    return Run(folder).last("deploy") if (folder / "stages.json").exists() else None
