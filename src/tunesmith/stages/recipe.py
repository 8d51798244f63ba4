"""A recipe: everything about a run that a person decides, in one file."""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from tunesmith.base import ConfigError, Spec
from tunesmith.base.spec import dump_yaml, merged, overridden, read_yaml, validate
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models.load import Precision
from tunesmith.models.quantize import KINDS
from tunesmith.serving.settings import Serve

from .deploy import Deploy
from .evaluate import Evaluate
from .finetune import Finetune
from .initialise import Initialise
from .monitor import Monitor
from .prepare import Prepare
from .prompting import Prompt
from .prune import Prune
from .sample import Sample
from .search import Search
from .search.space import check


class Recipe(Spec):
    """A fine-tuning run, from examples to a served and watched model.

    A recipe may hold `extends: PATH` besides, another recipe as seen from its own folder: what it does not say itself is taken from there.
    """

    model: str = "smollm2-135m"
    """What is fine-tuned: an embedded model's name, a Hugging Face folder, a GGUF file, the folder of a finished run, or a hub id owner/name."""
    precision: Precision = "auto"
    """What matrix products are computed in; auto takes bf16 where the machine multiplies it natively. int8 trains faster on a base that is
    rounded to it, at some loss of exactness. nf4 keeps the base in four bits, a quarter of bf16's memory, and computes in bf16: with the adapter
    lora that is QLoRA (arXiv:2305.14314). After either, evaluating and serving take auto, on the base as it was rounded with what was learnt beside it."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Where every random draw comes from: the same seed on the same machine gives the same bits."""
    prepare: Prepare
    """Which rows are learnt from and which are held out."""
    initialise: Initialise = Initialise()
    """Which weights learn."""
    search: Search = Search()
    """How settings are chosen."""
    finetune: Finetune = Finetune()
    """What is minimised, how, and for how long."""
    prune: Prune = Prune()
    """What is taken out of the tuned model, if anything."""
    evaluate: Evaluate = Evaluate()
    """How the result is measured, and what it takes to be promoted."""
    deploy: Deploy = Deploy()
    """How the result is written out."""
    monitor: Monitor = Monitor()
    """How the served model is watched."""
    prompt: Prompt = Prompt()
    """How a prompt is looked for that gets the most out of the model before training."""
    sample: Sample = Sample()
    """How a model's own answers become rows for another run."""
    serve: Serve = Serve()
    """How the result is served."""

    @model_validator(mode="after")
    def _frozen_in_few_bits(self) -> Self:
        adapter = self.initialise.adapter
        if self.precision in KINDS and not adapter.adds_weights:
            raise ValueError(
                f"precision: {self.precision} keeps the base as it is, and the adapter {adapter.kind} changes it; set precision=bf16, or initialise.adapter.kind=lora"
            )
        return self

    @model_validator(mode="after")
    def _answers_in_few_bits(self) -> Self:
        adapter, few = self.initialise.adapter, self.evaluate.precision
        if few in KINDS and (self.finetune.objective.scores or not adapter.merges):
            what = (
                "a model that scores" if self.finetune.objective.scores else f"what the adapter {adapter.kind} learns"
            )
            raise ValueError(
                f"evaluate.precision: {few} rounds merged weights of a model that answers, and {what} is none; set it to auto"
            )
        return self

    @model_validator(mode="after")
    def _pruned_weights_are_all(self) -> Self:
        adapter, again = self.initialise.adapter, self.prune.recovery
        if self.prune.method is not None and (
            self.finetune.objective.scores or (again is not None and again.objective.head)
        ):
            raise ValueError("prune leaves a model that writes answers, without a head; set prune.method=null")
        if self.prune.method is not None and not adapter.merges:
            raise ValueError(
                f"prune takes weights out of the tuned model, and what the adapter {adapter.kind} learns is no part of them; set prune.method=null, or "
                "initialise.adapter.kind=lora"
            )
        return self

    @model_validator(mode="after")
    def _base_can_move(self) -> Self:
        adapter, optimizer = self.initialise.adapter, self.finetune.optimizer
        if optimizer.moves_frozen and (self.precision in KINDS or not adapter.adds_weights or adapter.frozen_base):
            what = (
                f"a base in {self.precision}"
                if self.precision in KINDS
                else f"what the adapter {adapter.kind} leaves frozen"
            )
            raise ValueError(
                f"optimizer {optimizer.kind} moves the base, in float32, beside an adapter, and cannot move {what}; set precision=bf16 and "
                "initialise.adapter.kind=lora, or take another optimizer"
            )
        return self

    @property
    def _trainings(self) -> list[tuple[str, Finetune, str, Adapter]]:
        """Every training and what learns in it, each behind the path of its settings."""
        first = ("finetune", self.finetune, "initialise.adapter", self.initialise.adapter)
        if self.prune.recovery is None:
            return [first]
        return [first, ("prune.recovery", self.prune.recovery, "prune.adapter", self.prune.adapter)]

    @model_validator(mode="after")
    def _canaries_can_be_learnt(self) -> Self:
        if self.prepare.canaries is None:
            return self
        for name, tune, *_ in self._trainings:
            kind = tune.objective.kind
            if kind != "sft":
                raise ValueError(
                    f"prepare.canaries are answers to learn, and objective {kind} of {name} learns from other rows; leave them out, or measure with objective sft"
                )
            if tune.balance.active or self.prepare.weight or self.prepare.columns:
                raise ValueError(
                    "prepare.canaries have no class, weight or column, so balance would draw them as a class of their own; leave them out, or "
                    f"{name}.balance, prepare.weight and prepare.columns"
                )
        return self

    @model_validator(mode="after")
    def _classes_are_told(self) -> Self:
        for name, tune, *_ in self._trainings:
            if tune.balance.active and not self.prepare.classes:
                raise ValueError(
                    f"{name}.balance needs to know what a row's class is; set prepare.classes, for example to answer"
                )
            kind = tune.objective.kind
            if self.prepare.weight and not tune.objective.weighs:
                raise ValueError(f"prepare.weight: {name}.objective {kind} does not weigh rows; leave it out")
        return self

    @model_validator(mode="after")
    def _sampled_without_dropout(self) -> Self:
        for name, tune, place, adapter in self._trainings:
            if tune.objective.rollouts and isinstance(adapter, LoRA) and adapter.dropout:
                raise ValueError(
                    f"{place}.dropout: {name}.objective {tune.objective.kind} learns without dropout, as answers are sampled, or what it compares would "
                    "be noise; set it to 0"
                )
        return self

    @model_validator(mode="after")
    def _measured_by_what_it_says(self) -> Self:
        objective, evaluate = self.finetune.objective, self.evaluate
        odd = [grader.called for grader in evaluate.graders if (grader.reads == "scores") != objective.scores]
        if objective.scores and (odd or evaluate.general is not None or evaluate.gate.margin is not None):
            raise ValueError(
                f"objective {objective.kind} leaves a model that scores answers and writes none: set evaluate.graders to what judges scores "
                "(pairwise, or score_error and rank_correlation), evaluate.general and evaluate.gate.margin to null"
            )
        if objective.scores and (evaluate.prompted or evaluate.retrieval is not None):
            raise ValueError(
                f"objective {objective.kind} leaves a model that scores answers and writes none, so neither prompts nor answers from documents can be compared: set "
                "evaluate.prompted to false, evaluate.retrieval to null"
            )
        if odd:
            raise ValueError(
                f"evaluate.graders: {odd[0]} judges the scores of a reward model, and objective {objective.kind} leaves a model that writes answers"
            )
        if objective.scores and not self.initialise.adapter.merges:
            kind = self.initialise.adapter.kind
            raise ValueError(
                f"adapter {kind} is kept beside the weights, and a reward model has no place for it; take lora"
            )
        return self

    @model_validator(mode="after")
    def _what_is_to_be_beaten_is_there(self) -> Self:
        there = self.evaluate.rivals(self.finetune.objective)
        if odd := [name for name in self.evaluate.gate.beat if name not in there]:
            raise ValueError(
                f"evaluate.gate.beat: {odd[0]!r} is none of what this recipe compares with, which is {', '.join(there)}; leave it out, or see what evaluate.shots, "
                "evaluate.prompted and evaluate.baselines add"
            )
        return self

    @model_validator(mode="after")
    def _judged_by_rows(self) -> Self:
        held = self.prepare.validation is not None or self.prepare.validation_fraction
        for name, tune, *_ in self._trainings:
            if tune.validation.patience and not held:
                raise ValueError(
                    f"{name}.validation.patience: nothing is judged without validation rows; set prepare.validation_fraction, or patience to 0"
                )
        return self

    @model_validator(mode="after")
    def _search_can_be_made(self) -> Self:
        if self.search.trials:
            check(self)
        return self

    def to_yaml(self) -> str:
        """Every setting, defaults included, as a recipe."""
        return dump_yaml(self.model_dump(mode="json"))


PATHS = (
    ("prepare", "source"), ("prepare", "test"), ("prepare", "validation"), ("evaluate", "general"), ("evaluate", "retrieval", "documents"),
    ("evaluate", "retrieval", "questions"), ("serve", "token_file"), ("runs",),
)  # fmt: skip
"""Fields that name files, or the runs that a merged one is made of; in a recipe they are relative to the recipe's folder, on the command line to the current one."""
TRAININGS = (("finetune",), ("prune", "recovery"))
MODELS = (("model",), *((*place, "objective", name) for place in TRAININGS for name in ("models", "teacher")))
"""Fields that name models: paths likewise, if there is something of that name."""


def read_recipe(path: Path, assignments: tuple[str, ...] = (), over: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, with what it `extends`, and apply `path.to.field=value` overrides, and then others that lie over them.

    Raises:
        ConfigError: the file or an override is wrong; names the field and what exists.
    """
    tree = _whole(path)
    for layer in (assignments, over):
        overridden(tree, layer, Recipe)
    anchor(tree, Path.cwd())
    return validate(Recipe, tree, str(path))


def _whole(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe says, laid over the recipe that it `extends`, a path as seen from its own folder."""
    tree = read_yaml(path)
    anchor(tree, path.parent)
    below = tree.pop("extends", None)
    if below is None:
        return tree
    if not isinstance(below, str):
        raise ConfigError(f"{path}: extends: takes the path of one recipe, this is a {type(below).__name__}")
    chain = (*above, path.resolve())
    if (path.parent / below).resolve() in chain:
        raise ConfigError(f"{path}: extends: {below} extends this recipe in turn; break the circle")
    return merged(_whole(path.parent / below, chain), tree, Recipe)


def anchor(tree: dict[str, Any], folder: Path) -> None:
    """Make relative paths absolute, as seen from `folder`; the run folder's copy of the recipe then works from anywhere."""
    for places, beside in ((PATHS, _beside), (MODELS, _model_beside)):
        for *sections, name in places:
            below: Any = tree
            for section in sections:
                below = below.get(section) if isinstance(below, dict) else None
            if isinstance(below, dict) and name in below:
                below[name] = beside(folder, below[name])
    _anchor_runs(tree, folder)


def _model_beside(folder: Path, value: Any) -> Any:
    """A model's path below `folder`; lists likewise; a name that is no path stays."""
    if isinstance(value, list):
        return [_model_beside(folder, part) for part in value]
    return str((folder / value).resolve()) if isinstance(value, str) and (folder / value).exists() else value


def _anchor_runs(tree: Any, folder: Path) -> None:
    """The same for reward models, wherever a grader stands; what is no folder may be on the hub."""
    if isinstance(tree, dict):
        run = tree.get("run")
        if tree.get("kind") == "reward_model" and isinstance(run, str) and (folder / run).exists():
            tree["run"] = str((folder / run).resolve())
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        _anchor_runs(part, folder)


def _beside(folder: Path, value: Any) -> Any:
    """A path below `folder`; lists likewise; what is no path stays, as does what a showdown refers to by a `$`."""
    if isinstance(value, list):
        return [_beside(folder, part) for part in value]
    if not isinstance(value, str) or value == "bundled" or value.startswith("$"):
        return value
    path = Path(os.path.expanduser(value))
    return str(path) if path.is_absolute() else str((folder / path).resolve())
