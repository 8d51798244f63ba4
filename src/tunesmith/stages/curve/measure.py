"""The trainings of a data curve, and what is measured beside them on the same test rows; what is there already is not computed again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.base import Artifact, Run
from tunesmith.base.files import read_json, write_atomic, write_json
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.grading import Grader

from ..compare import Trained, Variant, quietly, trained
from ..pipeline import Pipeline, open_run
from ..recipe import Recipe
from .figures import Measured, Point, told
from .settings import Curve, check, check_reachable, variant
from .text import markdown


def simply(stage: str, make: Callable[[], Artifact]) -> Artifact:
    """Compute what stands beside the trainings, with nothing shown."""
    del stage
    return make()


def folder_of(given: Path, folder: Path | None) -> Path:
    """Where a curve lives: beside the run of the recipe, which stays as it is."""
    whole = given.resolve()
    return folder or (given.parent / f"{whole.name}-curve" if given.is_dir() else Path("runs") / f"{whole.stem}-curve")


def data_curve(
    given: Path,
    spec: Curve,
    *,
    assignments: tuple[str, ...] = (),
    folder: Path | None = None,
    work: Callable[[Pipeline, str], Artifact] = quietly,
    beside: Callable[[str, Callable[[], Artifact]], Artifact] = simply,
) -> dict[str, Any]:
    """Train what is not there yet, and write `curve.json`, `curve.md`, `curve.html` and `curve.svg` into the curve's folder.

    Args:
        given: a recipe, or the folder of a run.
        spec: what is wanted.
        assignments: `path.to.field=value` overrides of the recipe.
        folder: where the curve lives; see `folder_of`.
        work: trains and asks a pipeline of the size of that name; its artifact of answers.
        beside: computes what else is measured, by the name of its stage.

    Returns:
        As `figures.told`.

    Raises:
        ConfigError: a setting is wrong, or no curve can be made of the recipe.
    """
    given_run = open_run(given, None, assignments)
    given_run.before("ask")
    recipe, run = given_run.recipe, Run(folder_of(given, folder))
    check(recipe, spec)
    with run.lock():
        measured = measure(recipe, spec, run, work, beside)
        found = {"name": run.path.resolve().name, **told(measured)}
        write_json(run.path / "curve.json", found)
        write_atomic(run.path / "curve.md", markdown(found))
        write_pages(run.path, found)
    return found


def write_pages(folder: Path, found: dict[str, Any]) -> None:
    """The page and the figure."""
    from ..report.curve import figure, page

    write_atomic(folder / "curve.html", page(found))
    write_atomic(folder / "curve.svg", figure(found))


def measure(
    recipe: Recipe, spec: Curve, run: Run, work: Callable[[Pipeline, str], Artifact], beside: Callable[[str, Callable[[], Artifact]], Artifact]
) -> Measured:  # fmt: skip
    """All trainings and answers of a curve, the smallest first."""
    own = Pipeline(recipe, run)
    with own.recorded():
        prepared = beside("prepare", own.prepare)
        rows = load_split(prepared.path, "train")
        examples = load_examples(prepared.path, "test", recipe.evaluate.rows)
        check_reachable(recipe, spec, rows, examples)
    total = recipe.finetune.rows or len(rows)
    sizes = spec.chosen(total)
    asks = {"base": lambda: own.ask_base()}
    if recipe.evaluate.shots and any(row.prompt for row in load_examples(prepared.path, "train")[:1]):
        asks["few-shot"] = lambda: own.ask_base(recipe.evaluate.shots)
    made = {name: Trained(Variant(name, (), recipe), (), (beside("ask", ask),)) for name, ask in asks.items()}
    points = []
    for size in sizes:
        each = variant(recipe, rows, total, size, spec)
        tuned = trained(each, run.path, spec.seeds_of(size), work)
        points.append(Point(size, tuned, _rivals(each, run, spec.seeds_of(size), beside)))
    return Measured(recipe, spec, total, len(rows), examples, made["base"], made.get("few-shot"), points)


def _rivals(
    each: Variant, run: Run, seeds: int, beside: Callable[[str, Callable[[], Artifact]], Artifact]
) -> dict[str, list[list[str]]]:
    """What classifiers answer that learnt from the rows of each of a size's trainings."""
    if not each.recipe.evaluate.baselines or not reading_answers(each.recipe.evaluate.graders):
        return {}
    made = [
        Pipeline(each.recipe.model_copy(update={"seed": seed}), run, split_seed=each.recipe.seed)
        for seed in range(each.recipe.seed, each.recipe.seed + seeds)
    ]
    said = [read_json(beside("rivals", pipeline.rivals) / "answers.json") for pipeline in made]
    return {name: [one[name] for one in said] for name in said[0] if all(name in one for one in said)}


def reading_answers(graders: Sequence[Grader]) -> bool:
    """Whether any of them does, and not likelihoods alone."""
    return any(grader.reads == "answers" for grader in graders)
