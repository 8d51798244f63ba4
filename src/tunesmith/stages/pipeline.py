"""The pipeline: the eight stages in order, in one run folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, ConfigError, Run
from tunesmith.base.files import read_json
from tunesmith.base.run import run_of
from tunesmith.base.spec import read_yaml
from tunesmith.models.find import locate
from tunesmith.serving.log import settle
from tunesmith.training.others import check_teacher

from . import ask, deploy, evaluate, finetune, initialise, judgeable, monitor, prepare, prompting, prune, rivals, sample
from .fitted import fitted
from .inputs import named, read_by, read_in_training
from .merged import Merger, is_merged, read_merged
from .order import RESOLVED, Stages
from .prepare import input_files
from .reach import check_reach
from .recipe import Recipe, read_recipe
from .search import stage as search
from .search.space import chosen
from .search.study import Study

ORDER = ("prepare", "initialise", "search", "finetune", "prune", "evaluate", "deploy")
"""The stages that `run` goes through; monitor follows once the model is served."""

PLAN = "plan.json"
"""The estimate made before training, inside the run folder."""

GIVEN_PLAN = "plan-given.json"
"""The same of a recipe's own settings, where others are searched for."""

LOG = "requests.sqlite"
"""The server's request log, inside the run folder."""

SAID = {"ask": "compare; look at the evaluation of each", "sample": "sample; set sample.system=base"}
"""What stages do with a tuned model's answers, and what to do where it writes none."""


class Pipeline(Stages[Recipe]):
    """A recipe's stages in a run folder."""

    ORDER, AFTER = ORDER, ("ask", "sample", "prompt", "monitor")

    def __init__(self, recipe: Recipe, run: Run, notes: Path | None = None, split_seed: int | None = None) -> None:
        """A pipeline.

        Args:
            recipe: what a person decided.
            run: where artifacts are.
            notes: folder of resolved.yaml and plan.json, where they are not the run's own: of a variant of its recipe.
            split_seed: what rows are held out by, where it is not the recipe's own seed.
        """
        super().__init__(recipe, run)
        self.notes = notes or run.path
        self.split_seed = recipe.seed if split_seed is None else split_seed
        self.searched: Artifact | None = None
        self.work: Callable[[Study], None] = Study.work
        """How trials of a search are trained: one by one, or by workers here or elsewhere."""
        self._take(recipe)

    def _take(self, recipe: Recipe) -> None:
        """Go on with a recipe: the given one, or what a search made of it."""
        self.recipe = recipe
        self.adapter = recipe.initialise.adapter.model_dump(mode="json")
        self.checked: set[str] = set()
        self.about: dict[str, Any] = {"model": recipe.model, "precision": recipe.precision}

    def before(self, name: str) -> tuple[str, ...]:
        """What a stage needs, in order.

        Raises:
            ConfigError: there is no such stage, it measures and nothing is held out, or it asks a tuned model for answers that writes none.
        """
        if name == "monitor":
            return ()
        if name in ("ask", "evaluate", "deploy"):
            judgeable.check_held_out(self.recipe.prepare)
        from_base = name == "sample" and self.recipe.sample.system == "base"
        objective = self.recipe.finetune.objective
        if name in ("ask", "sample") and objective.scores and not from_base:
            raise ConfigError(
                f"{self.run.path}: objective {objective.kind} leaves a model that scores answers and writes none, so there is nothing to {SAID[name]}"
            )
        if from_base or name == "prompt":
            return super().before("initialise")
        return super().before("evaluate" if name in ("ask", "sample") else name)

    def record(self) -> None:
        """As of every run, or of the variant of it; a search stays a search there."""
        if self.searched is None:
            super().record()

    def prepare(self) -> Artifact:
        """Examples and rows."""
        spec, about = self.recipe.prepare.settled(), {"tokenizer_name": self.recipe.model, "seed": self.split_seed}
        if spec.select is not None and spec.select.draws:
            about["draw"] = self.recipe.seed
        return self.run.once(prepare.STAGE, spec, inputs=(*input_files(spec), *named(self.recipe.model)), **about)

    def initialise(self) -> Artifact:
        """The checked start.

        Raises:
            MachineError: training would not fit into memory; says what would.
            ConfigError: the rows cannot be evaluated as the recipe says.
        """
        prepared = self.prepare()
        self.recipe.deploy.check(
            self.recipe.model, self.recipe.initialise.adapter, self.recipe.finetune.objective.scores
        )
        first = prepared.id not in self.checked
        if first:
            self._check(prepared)
        self._plan(prepared, first)
        made = self.run.once(
            initialise.STAGE, self.recipe.initialise, prepared, inputs=named(self.recipe.model), **self.about, seed=self.recipe.seed
        )  # fmt: skip
        self.recipe.prune.check_loaded(made)
        return made

    def _check(self, prepared: Artifact) -> None:
        """Find out before training what would stop the stages after it."""
        recipe, model = self.recipe, self.recipe.model
        recipe.prune.check(locate(model))
        read_by(recipe.evaluate.graders)
        first = ("finetune", recipe.finetune, recipe.initialise.adapter)
        for name, tune, adapter in (first, ("prune.recovery", recipe.prune.recovery, recipe.prune.adapter)):
            if tune is not None:
                read_in_training(tune)
                check_teacher(tune.objective, model)
                check_reach(tune, adapter, prepared, model, name)
        judgeable.check(recipe.evaluate, prepared, model, recipe.initialise.adapter)
        if recipe.evaluate.prompted:
            prompting.check(recipe.prompt, prepared, recipe.evaluate.judges, recipe.seed, recipe.finetune.rows)
        self.checked.add(prepared.id)

    def _plan(self, prepared: Artifact, first: bool) -> None:
        """Refuse what cannot fit into memory, and settle what memory decides; what was planned before is held against it once, before anything is loaded."""
        path = self.notes / (GIVEN_PLAN if self.recipe.search.trials else PLAN)
        alone = self.notes == self.run.path and not self.recipe.search.trials  # else states are of several trainings
        states = self.run.states if first and alone else None
        settled = fitted(self.recipe, prepared, path, self.about, self.adapter, states)
        if settled != self.recipe and not self.recipe.search.trials:  # memory decides for each trial by itself
            self.recipe = settled
            self.record()

    def search(self) -> Artifact:
        """The settings to train with; later stages go on with them, the adapter included."""
        if self.searched is None and not self.recipe.search.trials:
            return self.run.once(search.STAGE, self.recipe.search, self.initialise())
        return self.searched or self._searched()

    def _searched(self) -> Artifact:
        """What trials came to; from now on the recipe is the winner's, which is not what the run is asked for."""
        search.require()
        self.initialise()  # rows and model are sound before many trainings are spent on them
        recipe, prepared = self.recipe, self.prepare()
        inputs = (*named(recipe.model), *read_in_training(recipe.finetune))
        stage = search.stage_for(recipe, self.run.path, inputs, self.work)
        made = self.run.once(
            stage, recipe.search, prepared, inputs=inputs, recipe=search.taught(recipe), made_by=finetune.STAGE.version
        )
        self.searched, winner = made, read_json(made / "settings.json")
        laid = chosen(recipe, winner["settings"])
        again = {"activation_checkpointing": winner["activation_checkpointing"]}
        self._take(laid.model_copy(update={"finetune": laid.finetune.model_copy(update=again)}))
        self.initialise()  # what later stages start from stands for its stage again
        return made

    def finetune(self) -> Artifact:
        """What was learnt."""
        searched = self.search()
        parents, spec = (self.prepare(), self.initialise(), searched), self.recipe.finetune
        return self.run.once(
            finetune.STAGE, spec, *parents, inputs=read_in_training(spec), **self.about, adapter=self.adapter, seed=self.recipe.seed
        )  # fmt: skip

    def prune(self) -> Artifact:
        """What is left of it."""
        parents, spec = (self.prepare(), self.finetune()), self.recipe.prune
        about = {**self.about, "adapter": self.adapter, "seed": self.recipe.seed}
        if spec.recovery is not None:
            about |= {"inputs": read_in_training(spec.recovery), "made_by": finetune.STAGE.version}
        return self.run.once(prune.STAGE, spec, *parents, **about)

    def _pruned(self) -> tuple[Artifact, ...]:
        """The pruned model, if there is to be one: what is measured and deployed in the place of what was learnt."""
        pruned = self.prune()
        return (pruned,) if self.recipe.prune.method else ()

    def prompt(self) -> Artifact:
        """The best prompt for the model before training."""
        measured, learnt = self.recipe.evaluate, self.recipe.finetune.rows
        about = {"graders": [grader.model_dump(mode="json") for grader in measured.judges], "rows": measured.rows}
        about |= {"learnt": learnt} if learnt is not None else {}
        return self.run.once(
            prompting.STAGE, self.recipe.prompt.settled(), self.prepare(), inputs=(*named(self.recipe.model), *read_by(measured.graders)),
            **self.about, **about, max_tokens=measured.max_tokens, seed=self.recipe.seed,
        )  # fmt: skip

    def evaluate(self) -> Artifact:
        """What it is worth."""
        finetuned = self.finetune()  # first: a search settles what it starts from
        prompted = (self.prompt(),) if self.recipe.evaluate.prompted else ()
        parents = (self.prepare(), self.initialise(), finetuned, *self._pruned(), *prompted)
        spec = self.recipe.evaluate.settled()
        return self.run.once(
            evaluate.STAGE, spec, *parents, inputs=(*read_by(spec.graders), *evaluate.input_files(spec)), **self.about, adapter=self.adapter,
            seed=self.recipe.seed,
        )  # fmt: skip

    def ask(self) -> Artifact:
        """Answers alone, to compare many trainings by."""
        spec, parents = ask.Ask.of(self.recipe.evaluate), (self.prepare(), self.finetune(), *self._pruned())
        return self.run.once(ask.STAGE, spec, *parents, **self.about, adapter=self.adapter)

    def ask_base(self, shots: int = 0) -> Artifact:
        """The same of the base, which was tuned for nothing; after worked examples, if any are wanted."""
        spec = ask.Ask.of(self.recipe.evaluate)
        worked: dict[str, Any] = {"shots": shots} if shots else {}
        inputs = named(self.recipe.model)
        return self.run.once(
            ask.STAGE, spec, self.prepare(), inputs=inputs, **self.about, adapter=self.adapter, **worked
        )

    def rivals(self) -> Artifact:
        """What classifiers that learnt from the same rows answer."""
        spec = rivals.Rivals(rows=self.recipe.finetune.rows, test_rows=self.recipe.evaluate.rows)
        return self.run.once(rivals.STAGE, spec, self.prepare(), seed=self.recipe.seed)

    def deploy(self) -> Artifact:
        """What can be served."""
        parents = (self.prepare(), self.finetune(), self.evaluate(), *self._pruned())
        return self.run.once(deploy.STAGE, self.recipe.deploy, *parents, **self.about, adapter=self.adapter)

    def sample(self) -> Artifact:
        """Rows made of the model's own answers."""
        spec = self.recipe.sample
        tuned = (self.finetune(), *self._pruned()) if spec.system == "tuned" else ()
        return self.run.once(
            sample.STAGE, spec, self.prepare(), *tuned, inputs=(*named(self.recipe.model), *read_by([each.grader for each in spec.rewards])),
            **self.about, adapter=self.adapter, seed=self.recipe.seed,
        )  # fmt: skip

    def monitor(self) -> Artifact:
        """How the deployed model is doing, compared with what it was made of, whatever the recipe says by now.

        Raises:
            ConfigError: nothing was served from this run yet.
            ArtifactError: nothing was deployed.
        """
        log = self.run.path / LOG
        if not log.exists():
            raise ConfigError(
                f"{log}: no requests were logged yet; serve the model with `tunesmith serve {self.run.path}`"
            )
        settle(log)
        made = {parent["stage"]: parent["folder"] for parent in self.deployed.manifest["parents"]}
        parents = [self.run.open(made[stage]) for stage in ("prepare", "evaluate")]
        return self.run.once(
            monitor.STAGE, self.recipe.monitor, *parents, inputs=(log,), log=str(log), artifact=self.deployed.path.name
        )


def open_run(
    given: Path, folder: Path | None = None, assignments: tuple[str, ...] = (), over: tuple[str, ...] = ()
) -> Pipeline:
    """A pipeline from a recipe file, or from the folder of a run that was started before.

    Args:
        given: a recipe (.yaml) or a run folder.
        folder: where the run lives; by default `runs/NAME` for a recipe called NAME.yaml.
        assignments: `path.to.field=value` overrides.
        over: others that lie over these.

    Raises:
        ConfigError: the recipe is missing or wrong, or that of a merged run.
    """
    found = open_any(given, folder, assignments, over)
    if not isinstance(found, Pipeline):
        raise ConfigError(f"{given}: was merged from other runs, which have what you ask for: {found.names}")
    return found


def open_any(
    given: Path, folder: Path | None = None, assignments: tuple[str, ...] = (), over: tuple[str, ...] = ()
) -> Pipeline | Merger:
    """As `open_run`, of a merged run too."""
    recipe = given / RESOLVED if given.is_dir() else given
    run = run_of(given, folder)
    if is_merged(read_yaml(recipe)):
        return Merger(read_merged(recipe, (*assignments, *over)), run)
    return Pipeline(read_recipe(recipe, assignments, over), run)
