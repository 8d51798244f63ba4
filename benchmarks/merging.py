"""Two tasks learnt apart, attributes of packages and translation, and every way to merge them measured on both: `python benchmarks/merging.py [--seeds 0 1 2]`.

Runs and merged runs live in `runs/merging`, where what is done is not done again. The result is `benchmarks/results/merging.json`, a table of docs/merging.md.
"""

import argparse
import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.base import Run
from tunesmith.base.artifact import environment
from tunesmith.data.prepared import load_examples
from tunesmith.grading.base import HEADLINE
from tunesmith.grading.seeds import over_seeds
from tunesmith.grading.statistics import Figure
from tunesmith.methods.merging import Merging
from tunesmith.stages.merged import Merger, merged_from
from tunesmith.stages.pipeline import Pipeline, open_run

ROOT = Path(__file__).parents[1]
RESULT, RUNS = ROOT / "benchmarks" / "results" / "merging.json", ROOT / "runs" / "merging"
TASKS = {"quickstart": ("prepare.test_rows=100", "evaluate.baselines=false"), "translation": ()}
"""Recipes, and what is changed of them."""
ALONE = ("evaluate.shots=0", "evaluate.general=null", "evaluate.gate={beat: [base], margin: null}")
"""Nothing but base and tuned model on the task's own rows."""
WAYS = {str(member.model_fields["kind"].default): () for member in Merging.members()} | {
    "cat-whole": ("merge.method.kind=cat", "merge.weights=[1,1]")
}
"""Every method with its defaults, and both runs added up whole: by default `cat` takes half of each."""


def learn(task: str, seed: int) -> Pipeline:
    """A task's own run, evaluated."""
    pipeline = open_run(
        ROOT / "recipes" / f"{task}.yaml", RUNS / f"{task}-{seed}", (*TASKS[task], *ALONE, f"seed={seed}")
    )
    pipeline.locked("evaluate")
    return pipeline


def put_together(way: str, seed: int) -> Merger:
    """The tasks' runs as one, evaluated on both."""
    runs = [RUNS / f"{task}-{seed}" for task in TASKS]
    settings = (*(WAYS[way] or (f"merge.method.kind={way}",)), f"seed={seed}")
    merger = Merger(merged_from(runs, settings), Run(RUNS / f"{way}-{seed}"))
    with merger.run.lock():
        merger.record()
        merger.evaluate()
    return merger


def figures(pipeline: Pipeline, number: int, mergers: dict[str, Merger]) -> dict[str, Figure]:
    """What each system comes to on one run's test rows, by its recipe's first grader."""
    evaluated, spec = pipeline.locked("evaluate"), pipeline.recipe.evaluate
    examples = load_examples(pipeline.prepare().path, "test", spec.rows)
    with (evaluated / "answers.jsonl").open(encoding="utf-8") as file:
        given = [json.loads(line)["answers"] for line in file]
    answers = {name: [one[system] for one in given] for name, system in {"base": "base", "own": "tuned"}.items()}
    for name, merger in mergers.items():
        answers[name] = json.loads((merger.evaluate() / f"merged-{number}.json").read_text(encoding="utf-8"))
    return {name: spec.graders[0].graded(examples, said)[HEADLINE] for name, said in answers.items()}


def told(found: Sequence[dict[str, Figure]]) -> dict[str, Any]:
    """Of each system its mean over seeds, what each seed came to, and what it is more than the task's own run, with 95 % intervals."""
    systems = {name: [one[name] for one in found] for name in found[0]}
    return {
        name: {
            **asdict(over_seeds(mine)),
            "seeds": [figure.point for figure in mine],
            "more_than_own": asdict(over_seeds(mine, systems["own"])),
        }
        for name, mine in systems.items()
    }


def measure(seeds: Sequence[int]) -> dict[str, Any]:
    """Learn, merge, and compare."""
    tasks: dict[str, list[dict[str, Figure]]] = {task: [] for task in TASKS}
    kept: dict[str, list[float]] = {way: [] for way in WAYS}
    units = {}
    for seed in seeds:
        own = [learn(task, seed) for task in TASKS]
        mergers = {way: put_together(way, seed) for way in WAYS}
        for way, merger in mergers.items():
            kept[way].append(merger.merge().metrics["kept"])
        for number, (task, pipeline) in enumerate(zip(TASKS, own, strict=True), start=1):
            tasks[task].append(figures(pipeline, number, mergers))
            units[task] = f"{pipeline.recipe.evaluate.graders[0].kind}, {pipeline.recipe.evaluate.graders[0].unit}"
            print(seed, task, {name: round(one.point, 1) for name, one in tasks[task][-1].items()}, flush=True)
    return {"units": units, "tasks": {task: told(found) for task, found in tasks.items()}, "kept": kept}


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    found = measure(given.seeds)
    stamp = {"date": datetime.date.today().isoformat(), "environment": environment(), "seeds": given.seeds}
    given.out.write_text(json.dumps({**stamp, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
