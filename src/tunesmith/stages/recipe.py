"""A recipe: everything about a run that a person decides, in one file."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import model_validator

from tunesmith.base import Spec
from tunesmith.base.spec import override, read_yaml, validate
from tunesmith.models.load import Precision
from tunesmith.models.quantize import KINDS
from tunesmith.serving.settings import Serve

from .deploy import Deploy
from .evaluate import Evaluate
from .finetune import Finetune
from .initialise import Initialise
from .monitor import Monitor
from .prepare import Prepare
from .search import Search


class Recipe(Spec):
    """A fine-tuning run, from examples to a served and watched model."""

    model: str = "smollm2-135m"
    """What is fine-tuned: an embedded model's name, a Hugging Face folder, a GGUF file, or a hub id owner/name."""
    precision: Precision = "auto"
    """What matrix products are computed in; auto takes bf16 where the machine multiplies it natively. int8 trains faster on a base that is
    rounded to it, at some loss of exactness. nf4 keeps the base in four bits, a quarter of bf16's memory, and computes in bf16: with the adapter
    lora that is QLoRA (arXiv:2305.14314). After either, evaluating and serving take auto, on the base as it was rounded with what was learnt beside it."""
    seed: int = 0
    """Where every random draw comes from: the same seed on the same machine gives the same bits."""
    prepare: Prepare
    """Which rows are learnt from and which are held out."""
    initialise: Initialise = Initialise()
    """Which weights learn."""
    search: Search = Search()
    """How settings are chosen."""
    finetune: Finetune = Finetune()
    """What is minimised, how, and for how long."""
    evaluate: Evaluate = Evaluate()
    """How the result is measured, and what it takes to be promoted."""
    deploy: Deploy = Deploy()
    """How the result is written out."""
    monitor: Monitor = Monitor()
    """How the served model is watched."""
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
    def _base_can_move(self) -> Self:
        adapter, optimizer = self.initialise.adapter, self.finetune.optimizer
        if optimizer.moves_frozen and (self.precision in KINDS or not adapter.adds_weights):
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

    def to_yaml(self) -> str:
        """Every setting, defaults included, as a recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


PATHS = (("prepare", "source"), ("prepare", "test"), ("prepare", "validation"), ("evaluate", "general"))
"""Fields that name files; in a recipe they are relative to the recipe's folder, on the command line to the current one."""


def read_recipe(path: Path, assignments: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply `path.to.field=value` overrides.

    Raises:
        ConfigError: the file or an override is wrong; names the field and what exists.
    """
    tree = read_yaml(path)
    _anchor(tree, path.parent)
    for assignment in assignments:
        override(tree, assignment)
    _anchor(tree, Path.cwd())
    return validate(Recipe, tree, str(path))


def _anchor(tree: dict[str, Any], folder: Path) -> None:
    """Make relative paths absolute, as seen from `folder`; the run folder's copy of the recipe then works from anywhere."""
    for stage, name in PATHS:
        section = tree.get(stage)
        if isinstance(section, dict) and name in section:
            section[name] = _beside(folder, section[name])
    if isinstance(tree.get("model"), str) and (folder / tree["model"]).exists():
        tree["model"] = str((folder / tree["model"]).resolve())


def _beside(folder: Path, value: Any) -> Any:
    """A path below `folder`; lists likewise; what is no path stays."""
    if isinstance(value, list):
        return [_beside(folder, part) for part in value]
    return (
        value
        if not isinstance(value, str) or value == "bundled" or Path(value).is_absolute()
        else str((folder / value).resolve())
    )
