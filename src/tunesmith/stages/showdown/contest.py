"""A showdown in its folder: every run below it, in an order in which each finds what it needs, then the comparison."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, ConfigError, DataError, Run
from tunesmith.base.files import write_atomic
from tunesmith.data.prepared import load_examples

from .. import divergence
from ..pipeline import Pipeline
from . import compare
from .cost import Cost, affordable, of_sampling, of_training, together
from .settings import PRODUCTS, START, Showdown, read_showdown


@dataclass(frozen=True)
class Work:
    """One stage of one run, to be computed."""

    name: str
    """Of the run."""
    run: Run
    stage: str
    make: Callable[[], Artifact]

    def do(self) -> Artifact:
        """Compute it, the run's folder held against other processes."""
        with self.run.lock():
            return self.make()


@dataclass
class Contest:
    """A showdown and how far it is. Everything in it is computed once: what is there already is not computed again."""

    spec: Showdown
    run: Run
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    measured: dict[str, Artifact] = field(default_factory=dict)

    def work(self) -> Iterator[Work]:
        """All that is to be done, in order; each has to be done before the next is asked for."""
        for name in self.spec.changes:
            pipeline = self.pipelines[name] = Pipeline(
                self.spec.recipe(name, self.find), Run(self.run.path.resolve() / name)
            )
            stages = sorted({PRODUCTS[product] for product in self.spec.taken(name)})
            if name in self.spec.roads:
                yield self._stage(name, "prepare")  # how long to train depends on what the rows hold
                left = self.spec.budget - together(self.costs[step] for step in self.spec.needed(name)).passes
                pipeline.recipe = affordable(pipeline.recipe, pipeline.prepare(), left, name)
                stages.append("evaluate")
            for stage in stages:
                begun = 1 if name in self.spec.roads else 0
                for before in (*pipeline.before(stage), stage)[begun:]:
                    yield self._stage(name, before)
            self.costs[name] = self._cost(pipeline, stages)
            if name in self.spec.roads:
                yield Work(name, pipeline.run, "divergence", lambda name=name: self._diverged(name))  # type: ignore[misc]
        yield Work("showdown", self.run, "compare", self._compared)

    def find(self, name: str, product: str) -> str:
        """Where what was taken of a run is."""
        pipeline = self.pipelines[name]
        if product == "run":
            return str(pipeline.run.path)
        return str(pipeline.stage(PRODUCTS[product]) / {"model": "model", "rows": "rows.jsonl"}[product])

    def _stage(self, name: str, stage: str) -> Work:
        pipeline = self.pipelines[name]

        def make() -> Artifact:
            with pipeline.recorded():
                made = pipeline.stage(stage)
            if (name, stage) == (START, "prepare"):
                _check_asked(made)
            return made

        return Work(name, pipeline.run, stage, make)

    def _cost(self, pipeline: Pipeline, stages: list[str]) -> Cost:
        """What a run added; a model that was only sampled from was not trained here."""
        found = []
        if any("finetune" in (*pipeline.before(stage), stage) for stage in stages):
            found.append(of_training(pipeline.recipe, pipeline.run, pipeline.prepare(), pipeline.finetune()))
        if "sample" in stages:
            found.append(of_sampling(pipeline.sample()))
        return together(found)

    def _diverged(self, name: str) -> Artifact:
        pipeline = self.pipelines[name]
        made = pipeline.run.once(
            divergence.STAGE, self.spec.divergence, pipeline.prepare(), pipeline.finetune(), **pipeline.about, adapter=pipeline.adapter, seed=pipeline.recipe.seed
        )  # fmt: skip
        self.measured[name] = made
        return made

    def _compared(self) -> Artifact:
        start = self.pipelines[START]
        roads = [
            artifact for name in self.spec.roads for artifact in (self.pipelines[name].evaluate(), self.measured[name])
        ]
        costs = {name: asdict(together(self.costs[step] for step in (*self.spec.needed(name), name))) for name in self.spec.roads}  # fmt: skip
        about = {name: self._about(name) for name in self.spec.changes}
        write_atomic(self.run.path / "showdown.json", self.spec.model_dump_json(indent=2) + "\n")
        return self.run.once(
            compare.STAGE, self.spec, start.prepare(), start.evaluate(), *roads,
            costs={START: asdict(self.costs[START]), **costs}, about=about, seed=start.recipe.seed,
        )  # fmt: skip

    def _about(self, name: str) -> dict[str, Any]:
        """How a run was made, for people."""
        recipe = self.pipelines[name].recipe
        found: dict[str, Any] = {"rests on": self.spec.needed(name)}
        if name in self.spec.steps and "rows" in self.spec.taken(name):
            found["sample"] = recipe.sample.model_dump(mode="json")
        if name not in self.spec.steps or {"run", "model"} & self.spec.taken(name):
            tune = recipe.finetune.model_dump(mode="json")
            found |= {
                part: tune[part]
                for part in ("objective", "rollouts", "optimizer", "schedule", "batch", "epochs", "most_tokens")
            }
        return found


def _check_asked(prepared: Artifact) -> None:
    """Refuse test rows that no road can answer, before anything is trained."""
    if any(example.text is not None for example in load_examples(prepared.path, "test")):
        raise DataError(
            f"{START}: the test rows are plain text, which asks nothing; give base.prepare.test rows of prompt and answer"
        )


def open_contest(given: Path, folder: Path | None = None, assignments: tuple[str, ...] = ()) -> Contest:
    """A showdown from its file.

    Args:
        given: the file (.yaml).
        folder: where its runs live; by default `runs/NAME` for a file called NAME.yaml.
        assignments: `path.to.field=value` overrides.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    contest = Contest(read_showdown(given, assignments), Run(folder or Path("runs") / given.stem))
    graders = contest.spec.recipe(START, contest.find).evaluate.graders
    if not any(grader.reads == "answers" for grader in graders):
        raise ConfigError(
            f"base.evaluate.graders: {', '.join(grader.called for grader in graders)}: roads are compared by what they answer; add a grader that judges answers"
        )
    return contest
