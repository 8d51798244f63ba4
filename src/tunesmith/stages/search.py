"""Search: which settings to train with; without trials it passes the given ones on."""

from pydantic import Field

from tunesmith.base import Artifact, Output, Spec, Stage
from tunesmith.base.files import write_json


class Search(Spec):
    """How settings are chosen."""

    trials: int = Field(0, ge=0, le=0)
    """Trainings to try; 0 takes the recipe's own settings."""


def search(spec: Search, initialised: Artifact, *, out: Output) -> None:
    """Write `settings.json`: the overrides of the recipe's finetune settings that won, none without trials."""
    write_json(out / "settings.json", {"trials": spec.trials, "overrides": {}})
    out.metrics["trials"] = spec.trials


STAGE = Stage("search", 1, search)
