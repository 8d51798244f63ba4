"""What runs of every kind share: stages in an order, computed by name in one run folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import ClassVar, Generic, Protocol, TypeVar

from tunesmith.base import Artifact, ConfigError, Interrupted, Run
from tunesmith.base.files import write_atomic

from .deploy import Deploy

RESOLVED = "resolved.yaml"
"""The recipe with every default, in a run's folder."""


class Settings(Protocol):
    """What a run's recipe has, whatever it is a recipe of."""

    @property
    def deploy(self) -> Deploy:
        """How the result is written out."""

    def to_yaml(self) -> str:
        """Every setting, defaults included, as a recipe."""


R = TypeVar("R", bound=Settings)


class Stages(Generic[R]):
    """A recipe in a run folder. Each stage's method computes it, and what it needs, unless that is there already."""

    ORDER: ClassVar[tuple[str, ...]]
    """The stages that `run` goes through; the last needs the gate's consent."""
    AFTER: ClassVar[tuple[str, ...]] = ()
    """Stages that follow, by a command of their own."""

    def __init__(self, recipe: R, run: Run) -> None:
        self.recipe, self.run = recipe, run
        self.notes = run.path

    def before(self, name: str) -> tuple[str, ...]:
        """What a stage needs, in order.

        Raises:
            ConfigError: runs of this kind have no such stage, or this one can have none.
        """
        if name not in (*self.ORDER, *self.AFTER):
            raise ConfigError(f"{self.run.path}: this run has no stage {name}; its stages are {', '.join(self.ORDER)}")
        return self.ORDER[: self.ORDER.index(name)] if name in self.ORDER else self.ORDER[:-1]

    def stage(self, name: str) -> Artifact:
        """The artifact of a stage, by name.

        Raises:
            ConfigError: as `before`.
        """
        self.before(name)
        made: Callable[[], Artifact] = getattr(self, name)
        try:
            return made()
        except Interrupted:
            self.run.interrupted(name)
            raise

    def locked(self, name: str) -> Artifact:
        """As `stage`, with the run folder held against other processes and the resolved recipe recorded in it."""
        with self.run.lock(), self.recorded():
            return self.stage(name)

    @cached_property
    def deployed(self) -> Artifact:
        """What was deployed last, whatever was trained since.

        Raises:
            ArtifactError: nothing was.
        """
        return self.run.last("deploy")

    def record(self) -> None:
        """Write the recipe with every default resolved where the run keeps its notes."""
        write_atomic(self.notes / RESOLVED, self.recipe.to_yaml())

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within this block the recipe is recorded; what fails before a stage begins to compute leaves the one that was there before, if any."""
        path, events = self.notes / RESOLVED, self.run.events
        before = path.read_text(encoding="utf-8") if path.exists() else None
        told = events.path.stat().st_size if events.path.exists() else 0
        self.record()
        try:
            yield
        except Exception:
            if all(event["event"] != "started" for event in events.since(told)):
                path.unlink(missing_ok=True) if before is None else write_atomic(path, before)
            raise
