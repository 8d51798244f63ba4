"""The files of a user's that stages read beside their parents; their content is part of the key."""

from collections.abc import Sequence
from pathlib import Path

from tunesmith.base.artifact import MANIFEST
from tunesmith.base.run import deployed
from tunesmith.grading import Grader
from tunesmith.models.find import files_of

from . import finetune


def read_by(graders: Sequence[Grader]) -> tuple[Path, ...]:
    """Files that graders judge by."""
    return tuple(path for grader in graders for path in grader.inputs)


def read_in_training(tune: finetune.Finetune) -> tuple[Path, ...]:
    """Files that a training reads beside its rows: what pays for answers, what judges them, and models that have a say."""
    objective, graders = tune.objective, [each.grader for each in tune.rollouts.rewards] if tune.rollouts else []
    if isinstance(tune.validation.metric, Grader):
        graders.append(tune.validation.metric)
    teacher = objective.teaching.model if objective.teaching is not None else None
    return (*read_by(graders), *named(*objective.others, *([teacher] if teacher is not None else [])))


def named(*models: str) -> tuple[Path, ...]:
    """What models are, whatever they are called: files whose content tells it; of one that is named by the folder of a run, the manifest of what was deployed."""
    found: list[Path] = []
    for name in models:
        made = deployed(name)
        found += files_of(name) if made is None else [made / MANIFEST]
    return tuple(found)
