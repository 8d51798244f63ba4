"""The pipeline: the seven stages in order, in one run folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, ConfigError, Run
from tunesmith.base.files import digest, read_json, write_atomic, write_json
from tunesmith.base.spec import validate
from tunesmith.data.prepared import load_split
from tunesmith.serving.log import settle

from . import deploy, evaluate, finetune, initialise, monitor, prepare, search
from .plan import check_memory, plans
from .prepare import input_files
from .recipe import Recipe, read_recipe

ORDER = ("prepare", "initialise", "search", "finetune", "evaluate", "deploy")
"""The stages that `run` goes through; monitor follows once the model is served."""

PLAN = "plan.json"
"""The estimate made before training, inside the run folder."""

LOG = "requests.sqlite"
"""The server's request log, inside the run folder."""


class Pipeline:
    """A recipe in a run folder. Each stage's method computes it, and what it needs, unless that is there already."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        self.adapter = recipe.initialise.adapter.model_dump(mode="json")
        self.about: dict[str, Any] = {"model": recipe.model, "precision": recipe.precision}

    def stage(self, name: str) -> Artifact:
        """The artifact of a stage, by name."""
        made: Callable[[], Artifact] = getattr(self, name)
        return made()

    def locked(self, name: str) -> Artifact:
        """As `stage`, with the run folder held against other processes and the resolved recipe recorded in it."""
        with self.run.lock():
            record(self)
            return self.stage(name)

    def prepare(self) -> Artifact:
        """Examples and rows."""
        spec, seed = self.recipe.prepare, self.recipe.seed
        return self.run.once(prepare.STAGE, spec, inputs=input_files(spec), tokenizer_name=self.recipe.model, seed=seed)

    def initialise(self) -> Artifact:
        """The checked start.

        Raises:
            MachineError: training would not fit into memory; says what would.
            ConfigError: the rows cannot be evaluated as the recipe says.
        """
        prepared = self.prepare()
        evaluate.check(self.recipe.evaluate, prepared)
        self._plan(prepared)
        return self.run.once(initialise.STAGE, self.recipe.initialise, prepared, **self.about, seed=self.recipe.seed)

    def _plan(self, prepared: Artifact) -> None:
        """Estimate the training once, keep it in `plan.json` for the report to compare with, refuse what cannot fit, and settle what memory decides."""
        recipe, path = self.recipe, self.run.path / PLAN
        wanted = recipe.finetune.activation_checkpointing
        settings = recipe.finetune.model_dump(mode="json", exclude={"activation_checkpointing"})
        asked = digest([prepared.id, self.about, self.adapter, settings])
        kept = read_json(path) if path.exists() else {}
        if kept.get("asked") != asked or wanted not in ("auto", kept["activation_checkpointing"]):
            found = check_memory(plans(recipe, load_split(prepared.path, "train"))).estimate
            figures = {name: getattr(found, name) for name in ("peak_bytes", "seconds", "steps", "tokens")}
            kept = {"asked": asked, "activation_checkpointing": found.checkpointing, "estimate": figures}
            write_json(path, kept)
        if wanted == "auto":
            settled = {"activation_checkpointing": kept["activation_checkpointing"]}
            self.recipe = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update=settled)})
            record(self)

    def search(self) -> Artifact:
        """The settings to train with."""
        return self.run.once(search.STAGE, self.recipe.search, self.initialise())

    def finetune(self) -> Artifact:
        """What was learnt."""
        searched = self.search()
        parents = (self.prepare(), self.initialise(), searched)
        spec = _overridden(self.recipe.finetune, read_json(searched / "settings.json")["overrides"])
        return self.run.once(finetune.STAGE, spec, *parents, **self.about, adapter=self.adapter, seed=self.recipe.seed)

    def evaluate(self) -> Artifact:
        """What it is worth."""
        parents = (self.prepare(), self.initialise(), self.finetune())
        return self.run.once(
            evaluate.STAGE, self.recipe.evaluate, *parents, **self.about, adapter=self.adapter, seed=self.recipe.seed
        )

    def deploy(self) -> Artifact:
        """What can be served."""
        parents = (self.prepare(), self.finetune(), self.evaluate())
        return self.run.once(deploy.STAGE, self.recipe.deploy, *parents, **self.about, adapter=self.adapter)

    def monitor(self) -> Artifact:
        """How the served model is doing.

        Raises:
            ConfigError: nothing was served from this run yet.
        """
        log = self.run.path / LOG
        if not log.exists():
            raise ConfigError(
                f"{log}: no requests were logged yet; serve the model with `tunesmith serve {self.run.path}`"
            )
        settle(log)
        return self.run.once(
            monitor.STAGE, self.recipe.monitor, self.prepare(), self.evaluate(), inputs=(log,), log=str(log)
        )


def _overridden(spec: finetune.Finetune, overrides: dict[str, Any]) -> finetune.Finetune:
    tree = spec.model_dump(mode="json")
    for path, value in overrides.items():
        *parents, last = path.split(".")
        below = tree
        for name in parents:
            below = below[name]
        below[last] = value
    return validate(finetune.Finetune, tree, "search")


def open_run(given: Path, folder: Path | None = None, assignments: tuple[str, ...] = ()) -> Pipeline:
    """A pipeline from a recipe file, or from the folder of a run that was started before.

    Args:
        given: a recipe (.yaml) or a run folder.
        folder: where the run lives; by default `runs/NAME` for a recipe called NAME.yaml.
        assignments: `path.to.field=value` overrides.

    Raises:
        ConfigError: the recipe is missing or wrong.
    """
    if given.is_dir():
        return Pipeline(read_recipe(given / "resolved.yaml", assignments), Run(given))
    return Pipeline(read_recipe(given, assignments), Run(folder or Path("runs") / given.stem))


def record(pipeline: Pipeline) -> None:
    """Write the recipe with every default resolved into the run folder."""
    write_atomic(pipeline.run.path / "resolved.yaml", pipeline.recipe.to_yaml())
