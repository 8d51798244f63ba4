"""Whether a fifth of a training tells which settings are best, and what a search gains: debtags, `recipes/search.yaml`, every trial to its end.

    python benchmarks/search.py [--trials 12] [--seed 0] [--workers 1]    # goes on where it was interrupted

Two searches with as many trials, by the Gaussian process and at random, beside the recipe's own settings. What the scheme would have chosen (the
best at the end of those that were best early) is measured on the test split, which no trial saw. The result is `benchmarks/results/search.json`.
"""

import argparse
import datetime
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from choices_table import searched as told

ROOT = Path(__file__).parents[1]
RECIPE, RESULT = ROOT / "recipes" / "search.yaml", ROOT / "benchmarks" / "results" / "search.json"
FIGURE = ROOT / "docs" / "search.svg"
SAMPLERS = ("gp", "random")
PAPER = {"source": "arXiv:2407.13906", "early": 0.2, "stayed of the top 5": 4, "gain on its test set, points": 2.0}
"""What the paper reports; it names neither the number of trials nor an interval."""


def searched(sampler: str, given: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The pipeline and the results of a search with all trials trained to their end."""
    from tunesmith.base.files import read_json
    from tunesmith.stages.pipeline import open_run
    from tunesmith.stages.search.worker import work_together

    settings = (f"search.trials={given.trials}", f"search.sampler={sampler}", "search.audit=true", f"seed={given.seed}")
    folder = ROOT / "runs" / f"search-{sampler}-{given.seed}"
    pipeline = open_run(RECIPE, folder, (*settings, "prepare.test_rows=null", *given.settings))
    if given.workers > 1:
        pipeline.work = partial(work_together, workers=given.workers)
    made = pipeline.locked("search")
    return pipeline, read_json(made / "search.json")


def answers(pipeline: Any, found: dict[str, Any], number: int) -> list[str]:
    """What a trial's model answers to the test rows; kept in the trial's folder."""
    from tunesmith.base import Artifact
    from tunesmith.base.files import read_json
    from tunesmith.stages import ask
    from tunesmith.stages.search.trial import Trial

    trial = Trial(pipeline.run.path / found["folder"] / f"{number:04d}")
    tuned = Artifact.open(trial.made(1.0))
    about = {name: tuned.manifest["context"][name] for name in ("model", "precision", "adapter")}
    said = trial.run.once(ask.STAGE, ask.Ask.of(pipeline.recipe.evaluate), pipeline.prepare(), tuned, **about)
    kept: list[str] = read_json(said / "answers.json")
    return kept


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Both searches, and the test scores of what they chose."""
    from tunesmith.base.artifact import environment
    from tunesmith.data.prepared import load_examples
    from tunesmith.grading import HEADLINE
    from tunesmith.grading.statistics import difference, interval

    found = {sampler: searched(sampler, given) for sampler in SAMPLERS}
    pipeline = found["gp"][0]
    measure = pipeline.recipe.evaluate
    grader, test = measure.graders[0], load_examples(pipeline.prepare().path, "test", measure.rows)
    picked = {"the recipe's own settings": ("gp", 0)}
    for sampler, (_, results) in found.items():
        picked[f"{sampler}, chosen early"] = (sampler, results["chosen_early"])
        picked[f"{sampler}, best of all at the end"] = (sampler, results["winner"])
    figures = {
        name: grader.graded(test, answers(*found[sampler], number))[HEADLINE]
        for name, (sampler, number) in picked.items()
    }
    own, gp, chance = (
        figures[name] for name in ("the recipe's own settings", "gp, chosen early", "random, chosen early")
    )
    return {
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "trials": given.trials,
        "seed": given.seed,
        "grader": grader.called,
        "unit": grader.unit,
        "rows": len(test),
        "paper": PAPER,
        "shared": min(given.trials, pipeline.recipe.search.start),
        "trust": {sampler: results["trust"] for sampler, (_, results) in found.items()},
        "test": {name: {"trial": picked[name], **interval(each).to_json()} for name, each in figures.items()},
        "gain over the recipe's own settings": difference(gp, own).to_json(),
        "gain over random search with as many trials": difference(gp, chance).to_json(),
        "cost": {
            sampler: {name: results[name] for name in ("tokens", "seconds")} for sampler, (_, results) in found.items()
        },
        "searches": {
            sampler: {name: results[name] for name in ("metric", "lower_is_better", "winner", "trials")}
            for sampler, (_, results) in found.items()
        },
    }


def figure(result: dict[str, Any]) -> str:
    """What each search's trials scored at the end, by what they scored at a fifth."""
    from tunesmith.stages.report.search import early
    from tunesmith.stages.report.standalone import panels

    shown = {sampler: early(found, "0.2") for sampler, found in result["searches"].items()}
    return panels([replace(panel, title=f"{sampler}: {panel.title}") for sampler, panel in shown.items()])


def main() -> None:
    """Search, measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument(
        "settings", nargs="*", help="path.to.field=value, for a quick look with another model or fewer rows"
    )
    given = parser.parse_args()
    result = measured(given)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    (FIGURE if given.out == RESULT else given.out.with_suffix(".svg")).write_text(figure(result))
    print(told(result))


if __name__ == "__main__":
    main()
