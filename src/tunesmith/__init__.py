"""Fine-tune a language model on your task, and know that it got better.

Every stage is a function here, under the same name as on the command line:

    import tunesmith
    run = tunesmith.run("recipe.yaml")                     # all stages; the folder of the run
    artifact = tunesmith.evaluate("recipe.yaml", "finetune.epochs=2")

A function of yours can judge answers, and pay for them, once it is a `tunesmith.grader`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.base import Artifact

STAGES = ("prepare", "initialise", "search", "finetune", "prune", "evaluate", "deploy", "monitor", "sample")
__all__ = ["grader", "merge", "run", *STAGES]


def run(given: str | Path, *assignments: str, folder: str | Path | None = None) -> Path:
    """Compute every stage of a recipe that is not there yet, and write the report.

    Args:
        given: a recipe (.yaml), or the folder of a run.
        assignments: `path.to.field=value` overrides.
        folder: where the run lives; `runs/NAME` by default.

    Returns:
        The run's folder.

    Raises:
        TunesmithError: what, where and how to mend; ConfigError if the gate does not promote the model.
    """
    from tunesmith.stages import report

    pipeline = _open(given, assignments, folder)
    with pipeline.run.lock():
        try:
            with pipeline.recorded():
                _all_of(pipeline)
        finally:
            if "prepare" in pipeline.ORDER:  # the page of a merged run is written by the command line
                report.write(pipeline.run)
    path: Path = pipeline.run.path
    return path


def grader(function: Callable[[str, Any], float]) -> Callable[[str, Any], float]:
    """Let recipes name a function of yours: `{kind: function, name: ITS_NAME}` is then a grader, and pays for answers where rewards name it. To be used as a decorator.

    Args:
        function: of an answer (str) and the example that it answers (`example.gold` is the gold answer); it says what the answer is worth, from 0 to 1.

    Raises:
        ConfigError: it is in no file, so that nobody could tell whether it changed.
    """
    from tunesmith.grading.function import grader as known

    return known(function)


def merge(*runs: str | Path, folder: str | Path, settings: tuple[str, ...] = ()) -> Path:
    """Put what several runs learnt of one base together, and evaluate it on the task of each.

    Args:
        runs: folders of finished runs.
        folder: where the merged run lives.
        settings: `path.to.field=value` overrides, such as `merge.method.kind=ties`.

    Returns:
        The merged run's folder.

    Raises:
        TunesmithError: what, where and how to mend; ConfigError if the runs cannot be merged, or a gate does not promote what they became.
    """
    from tunesmith.base import Run
    from tunesmith.stages.merged import Merger, merged_from

    pipeline = Merger(merged_from([Path(one) for one in runs], settings), Run(Path(folder)))
    with pipeline.run.lock(), pipeline.recorded():
        _all_of(pipeline)
    return pipeline.run.path


def _all_of(pipeline: Any) -> None:
    last = pipeline.ORDER[-1]
    for stage in (*pipeline.before(last), last):
        pipeline.stage(stage)


def _open(given: str | Path, assignments: tuple[str, ...], folder: str | Path | None) -> Any:
    from tunesmith.stages.pipeline import open_any

    return open_any(Path(given), Path(folder) if folder else None, assignments)


def _stage(name: str) -> Callable[..., "Artifact"]:
    def compute(given: str | Path, *assignments: str, folder: str | Path | None = None) -> "Artifact":
        made: Artifact = _open(given, assignments, folder).locked(name)
        return made

    compute.__name__ = compute.__qualname__ = name
    compute.__doc__ = (
        f"Compute the {name} stage of a recipe or run, and what it needs; returns its artifact. Arguments as `run`."
    )
    return compute


prepare, initialise, search, finetune, prune, evaluate, deploy, monitor, sample = (_stage(name) for name in STAGES)
