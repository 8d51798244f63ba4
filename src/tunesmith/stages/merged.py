"""A merged run: which runs it is made of, and its stages, merge, evaluate and deploy, in a folder of its own."""

from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from tunesmith.base import Artifact, ConfigError, Spec
from tunesmith.base.spec import dump_yaml, overridden, read_yaml, validate
from tunesmith.serving.settings import Serve

from . import comparison, deploy, merge
from .deploy import Deploy
from .general import general_files
from .inputs import read_by
from .merge import Merge
from .order import Stages
from .recipe import anchor
from .sources import Source, check, read_sources


class Merged(Spec):
    """A run that is made of others: what they learnt of one base, put together."""

    runs: tuple[Path, ...] = Field(min_length=1)
    """Folders of finished runs that were tuned from one base in one precision."""
    merge: Merge = Merge()
    """How what they learnt becomes one."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Where the draws of methods that drop at random come from."""
    deploy: Deploy = Deploy()
    """How the result is written out."""
    serve: Serve = Serve()
    """How the result is served."""

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> Self:
        weights = self.merge.weights
        if weights is not None and len(weights) != len(self.runs):
            raise ValueError(f"merge.weights: there are {len(weights)}, for {len(self.runs)} runs; give one for each")
        return self

    def to_yaml(self) -> str:
        """Every setting, defaults included, as a recipe."""
        return dump_yaml(self.model_dump(mode="json"))


def is_merged(tree: dict[str, Any]) -> bool:
    """Whether a recipe is one of a merged run."""
    return "runs" in tree


def read_merged(path: Path, assignments: tuple[str, ...] = ()) -> Merged:
    """Read a merged run's recipe and apply `path.to.field=value` overrides; paths are relative to the recipe's folder.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    tree = read_yaml(path)
    anchor(tree, path.parent)
    return _read(tree, assignments, str(path))


def merged_from(runs: list[Path], assignments: tuple[str, ...]) -> Merged:
    """The recipe of runs that are given by their folders."""
    return _read({"runs": [str(run.resolve()) for run in runs]}, assignments, "merge")


def _read(tree: dict[str, Any], assignments: tuple[str, ...], origin: str) -> Merged:
    overridden(tree, assignments, Merged)
    anchor(tree, Path.cwd())
    return validate(Merged, tree, origin)


class Merger(Stages[Merged]):
    """A merged run's stages in a run folder."""

    ORDER = ("merge", "evaluate", "deploy")

    @cached_property
    def sources(self) -> list[Source]:
        """The runs it is made of, verified and fit for each other; no model is loaded.

        Raises:
            ConfigError: they cannot be merged; says why.
            ArtifactError: one of them is not finished, or damaged.
        """
        found = read_sources(self.recipe.runs)
        check(found, self.recipe.merge.method)
        return found

    def record(self) -> None:
        """As of every run, once it is known that the runs can be merged, and that none of them lives here.

        Raises:
            ConfigError: they cannot, or one does.
            ArtifactError: one of them is not finished, or damaged.
        """
        if "prepare" in self.run.states or self.run.path.resolve() in [run.resolve() for run in self.recipe.runs]:
            raise ConfigError(f"{self.run.path}: holds a run that was not merged; choose another folder for this one")
        self.sources  # noqa: B018
        super().record()

    @property
    def about(self) -> dict[str, Any]:
        """What the runs have in common."""
        return {name: self.sources[0].context[name] for name in ("model", "precision")}

    @property
    def names(self) -> list[str]:
        """What the runs are called."""
        return [one.name for one in self.sources]

    def merge(self) -> Artifact:
        """What the runs learnt together."""
        self._judged_by()  # they are there
        adapters = [one.context["adapter"] for one in self.sources]
        learnt = [one.finetuned for one in self.sources]
        return self.run.once(
            merge.STAGE, self.recipe.merge, *learnt, **self.about, adapters=adapters, seed=self.recipe.seed
        )

    def evaluate(self) -> Artifact:
        """What it is worth on the task of each run."""
        parents = [artifact for one in self.sources for artifact in one.artifacts]
        return self.run.once(
            comparison.STAGE,
            comparison.Compare(),
            self.merge(),
            *parents,
            inputs=self._judged_by(),
            **self.about,
            names=self.names,
        )

    def _judged_by(self) -> tuple[Path, ...]:
        """Files that the graders of the runs judge by, and those that their general rows are in.

        Raises:
            DataError: one is missing.
        """
        measured = [one.evaluation for one in self.sources]
        general = [path for each in measured for path in general_files(each.general)]
        return (*read_by([grader for each in measured for grader in each.graders]), *general)

    def deploy(self) -> Artifact:
        """What can be served."""
        merged, evaluated = self.merge(), self.evaluate()
        prepared = [one.prepared for one in self.sources]
        return self.run.once(
            deploy.MERGED, self.recipe.deploy, merged, evaluated, *prepared, **self.about, names=self.names
        )
