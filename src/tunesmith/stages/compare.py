"""Compare: a recipe and variants of it, trained with the same seeds on the same rows and measured on the same held-out ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.base import Artifact, ConfigError, Run
from tunesmith.base.files import digest, read_json, write_atomic, write_json
from tunesmith.data.example import Example, Row
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.grading import HEADLINE, Figure, Grader, Likelihood
from tunesmith.grading.base import Chances
from tunesmith.grading.scoreboard import groups
from tunesmith.grading.seeds import between, over_seeds, spread
from tunesmith.grading.statistics import CONFIDENCE, RESAMPLES

from .evaluate import Evaluate
from .headline import decimals, spoken
from .pipeline import Pipeline, open_run
from .recipe import Recipe
from .vary import settings_of

GIVEN = "as given"
"""What the recipe itself is called among its variants."""
FOLDER = "variants"
"""Where, in the run folder, what each variant's recipe came to is kept."""


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    settings: tuple[str, ...]
    """What it changes in the recipe."""
    recipe: Recipe


@dataclass(frozen=True)
class Trained:
    """A variant's trainings, one per seed."""

    variant: Variant
    finetuned: tuple[Artifact, ...]
    asked: tuple[Artifact, ...]

    @cached_property
    def answers(self) -> list[list[str]]:
        """Per seed the answers to the test rows."""
        return [read_json(each / "answers.json") for each in self.asked]

    @cached_property
    def likelihoods(self) -> list[list[Likelihood]]:
        """Per seed the right answers' likelihoods."""
        return [[Likelihood(*pair) for pair in read_json(each / "likelihoods.json")] for each in self.asked]

    @cached_property
    def chances(self) -> list[list[Chances]]:
        """Per seed how probable each class is."""
        return [read_json(each / "chances.json") for each in self.asked]

    def figures(self, grader: Grader, examples: Sequence[Example]) -> list[dict[str, Figure]]:
        """Per seed what a grader says."""
        outputs: Sequence[Sequence[Any]] = getattr(self, grader.reads)
        return [grader.graded(examples, each) for each in outputs]


def variants(given: Path, assignments: tuple[str, ...], vary: Sequence[str]) -> list[Variant]:
    """The recipe itself and what is varied, without those that come to the same.

    Raises:
        ConfigError: a setting is wrong, or changes what is measured.
    """
    whole = open_run(given, None, assignments)
    whole.before("ask")
    found = [Variant(GIVEN, (), whole.recipe)]
    first = found[0].recipe
    for settings in (settings for text in vary for settings in settings_of(text)):
        varied = open_run(given, None, assignments, settings)
        varied.before("ask")
        recipe, name = varied.recipe, " ".join(map(_short, settings))
        if any(name == other.name for other in found):
            name = " ".join(settings)
        if recipe.evaluate != first.evaluate:
            raise ConfigError(
                f"--vary {name}: variants are measured alike; put what is in evaluate behind the recipe instead"
            )
        if recipe.seed != first.seed:
            raise ConfigError("--vary seed: every variant is trained with the same seeds; use --seeds")
        if all(recipe != other.recipe for other in found):
            found.append(Variant(name, settings, recipe))
    if len(found) == 1:
        raise ConfigError("compare: nothing is varied; add --vary path.to.field=value,value")
    return found


def _short(setting: str) -> str:
    """A setting without the stage that it is of."""
    path, _, value = setting.partition("=")
    return f"{path.partition('.')[2] or path}={value}"


def pipelines(variant: Variant, folder: Path, seeds: int) -> Iterator[Pipeline]:
    """A variant's pipelines, one per seed; the rows are held out by the recipe's own seed in all of them."""
    for seed in range(variant.recipe.seed, variant.recipe.seed + seeds):
        recipe = variant.recipe.model_copy(update={"seed": seed})
        own = variant.name == GIVEN and seed == variant.recipe.seed
        notes = folder if own else folder / FOLDER / digest(recipe.model_dump(mode="json"))[:12]
        yield Pipeline(recipe, Run(folder), notes, variant.recipe.seed)


def trained(variant: Variant, folder: Path, seeds: int, work: Callable[[Pipeline, str], Artifact]) -> Trained:
    """A variant's trainings; `work` trains and asks a pipeline of the variant of that name, and gives its artifact of answers."""
    finetuned, asked = [], []
    for pipeline in pipelines(variant, folder, seeds):
        pipeline.notes.mkdir(parents=True, exist_ok=True)
        with pipeline.recorded():
            asked.append(work(pipeline, variant.name))
            finetuned.append(pipeline.finetune())
    return Trained(variant, tuple(finetuned), tuple(asked))


def quietly(pipeline: Pipeline, variant: str) -> Artifact:
    """Train and ask, with nothing shown."""
    del variant
    return pipeline.stage("ask")


def compare(
    given: Path,
    vary: Sequence[str],
    *,
    seeds: int = 1,
    assignments: tuple[str, ...] = (),
    folder: Path | None = None,
    work: Callable[[Pipeline, str], Artifact] = quietly,
) -> dict[str, Any]:
    """Train what is not there yet, compare, and write `compare.json` and `compare.md` into the run folder, which stays a run of the recipe itself.

    Args:
        given: a recipe, or the folder of a run.
        vary: what `--vary` says, see `settings_of`.
        seeds: trainings of each variant.
        assignments: `path.to.field=value` overrides for all variants.
        folder: where the run lives; `runs/NAME` by default.
        work: trains and asks a pipeline of the variant of that name; its artifact of answers.

    Returns:
        As `compared`.

    Raises:
        ConfigError: a setting is wrong, or variants cannot be compared.
    """
    found, run = variants(given, assignments, vary), open_run(given, folder, assignments).run
    with run.lock():
        examples = _held_out(found, run.path)
        made = [trained(variant, run.path, seeds, work) for variant in found]
        next(pipelines(found[0], run.path, 1)).stage("ask")
        told = compared(made, examples, found[0].recipe.evaluate)
        write_json(run.path / "compare.json", told)
        write_atomic(run.path / "compare.md", markdown(told))
    return told


def _held_out(found: Sequence[Variant], folder: Path) -> list[Example]:
    """The test rows of all variants.

    Raises:
        ConfigError: they are not the same, or, where a grader reads how likely their tokens are, not the same tokens.
    """
    spec = found[0].recipe.evaluate
    likely = [grader.called for grader in spec.graders if grader.reads == "likelihoods"]
    first: list[Example] = []
    scored: list[bytes] = []
    for variant in found:
        folder_of_rows = next(pipelines(variant, folder, 1)).prepare().path
        examples = load_examples(folder_of_rows, "test", spec.rows)
        tokens = [_scored(row) for row in load_split(folder_of_rows, "test", spec.rows)] if likely else []
        first, scored = first or examples, scored or tokens
        if examples != first:
            raise ConfigError(
                f"--vary {variant.name}: holds out other rows, so it cannot be compared; leave that setting out"
            )
        if tokens != scored:
            raise ConfigError(
                f"--vary {variant.name}: {', '.join(likely)} would be of other tokens of the test rows, so it cannot be compared; leave that setting out, or name other graders in evaluate.graders"
            )
    return first


def _scored(row: Row) -> bytes:
    """Which tokens of a row a likelihood is of, and what they follow."""
    first = row.sequences[0]
    return first.tokens.tobytes() + first.learn.tobytes()


def compared(all_trained: Sequence[Trained], examples: Sequence[Example], spec: Evaluate) -> dict[str, Any]:
    """Every figure of every variant, and its differences from the first one's.

    Returns:
        A JSON value: `rows`, `seeds`, `confidence`, `resamples`, `variants` (`name`, `settings`, `runs` with seed, folders, steps and rows of an
        epoch per class) and `figures`: per figure `grader`, `name`, `unit`, `better`, `digits`, `summary` (whether it speaks of all rows), `values` by
        variant (`value`, `low`, `high`, `n`, and `seeds`: the value of each) and `differences` by variant.
    """
    return {
        "rows": len(examples),
        "seeds": [each.manifest["context"]["seed"] for each in all_trained[0].finetuned],
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "variants": [_told(each) for each in all_trained],
        "figures": [
            figure for grader in spec.graders for figure in _figures(all_trained, examples, grader, spec.slices)
        ],
    }


def _told(each: Trained) -> dict[str, Any]:
    runs = [
        {"seed": made.manifest["context"]["seed"], "finetune": made.path.name, "ask": said.path.name,
         **{name: made.metrics[name] for name in ("steps", "step_seconds", "classes") if name in made.metrics}}
        for made, said in zip(each.finetuned, each.asked, strict=True)
    ]  # fmt: skip
    return {"name": each.variant.name, "settings": list(each.variant.settings), "runs": runs}


def _figures(
    all_trained: Sequence[Trained], examples: Sequence[Example], grader: Grader, slices: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """A grader's headline, its parts and its headline by slice."""
    found = {each.variant.name: each.figures(grader, examples) for each in all_trained}
    names = [
        name for name in next(iter(found.values()))[0] if all(name in one for each in found.values() for one in each)
    ]
    about = {"grader": grader.called, "unit": grader.unit, "better": grader.better, "digits": grader.digits}
    for name in names:
        summary = name == HEADLINE or name in grader.summaries
        figures = {variant: [one[name] for one in each] for variant, each in found.items()}
        yield {**about, "name": name, "summary": summary, **_beside(figures)}
    for name, rows in groups(examples, slices).items():
        figures = {variant: [one[HEADLINE].take(rows) for one in each] for variant, each in found.items()}
        if not all(one.rows for each in figures.values() for one in each):
            continue  # a grader that asks few rows may have asked none of these
        yield {**about, "name": name, "summary": False, **_beside(figures)}


def _beside(figures: dict[str, list[Figure]]) -> dict[str, Any]:
    """One figure of all variants."""
    first = next(iter(figures.values()))
    points = np.array([[one.point for one in each] for each in figures.values()])
    alone, paired = spread(points), between(points)
    values = {
        name: {**over_seeds(each, apart=alone).to_json(), "seeds": [one.point for one in each]}
        for name, each in figures.items()
    }
    apart = {
        name: over_seeds(each, first, apart=paired).to_json() for name, each in figures.items() if each is not first
    }
    return {"values": values, "differences": apart}


def markdown(found: dict[str, Any]) -> str:
    """The comparison as a table to publish."""
    seeds = len(found["seeds"])
    lines = [
        f"{found['rows']:,} test rows, {seeds} training{'s' if seeds > 1 else ''} each; in brackets 95 % intervals over rows"
        + (
            " and seeds, which are taken to matter alike in all variants."
            if seeds > 1
            else ". One seed says nothing of how another would have done."
        ),
        "",
        f"| figure | variant | value | difference from {found['variants'][0]['name']} |",
        "|---|---|---:|---:|",
    ]
    for figure, variant, value, apart in cells(found, summaries=False):
        lines.append(f"| {figure} | {variant} | {value} | {apart} |".replace("\n", " "))
    settings = [f"* {each['name']}: `{' '.join(each['settings'])}`" for each in found["variants"] if each["settings"]]
    return "\n".join([*lines, "", *settings]) + "\n"


def cells(found: dict[str, Any], summaries: bool = True) -> Iterator[tuple[str, str, str, str]]:
    """Per figure and variant: what it is, the variant, the value and the difference, as text; all figures, or those that speak of all rows."""
    for figure in (each for each in found["figures"] if each["summary"] or not summaries):
        name = (
            f"{figure['grader']}, {figure['unit']}"
            if figure["name"] == HEADLINE
            else f"{figure['grader']}: {figure['name']}"
        )
        digits = decimals(figure)
        for variant, value in figure["values"].items():
            apart = figure["differences"].get(variant)
            yield name, variant, spoken(value, digits), spoken(apart, digits, "+") if apart else ""
            name = "" if summaries else name
