"""How much data is enough: three seeds at each size, of debtags, beside what is published of another task, and of translation.

    python benchmarks/data_curve.py                         # goes on where it was stopped; the trainings are in runs/data_curve
    python benchmarks/data_curve.py --work translation      # in runs/data_curve_translation
    python benchmarks/data_curve.py --sizes 0,4,8,16 --seeds 1 --out /tmp/curve model=PATH     # to see that it works

Results are `benchmarks/results/data_curve.json` and `data_curve_translation.json`, figures `docs/data-curve.svg` and `data-curve-translation.svg`; `benchmarks/readme.py`
puts all into docs/data-curve.md.
"""

import argparse
import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"


@dataclass(frozen=True)
class Work:
    """A recipe's curve."""

    recipe: str
    result: str
    sizes: str
    """All there are where none are named."""
    target: float | None = None
    settings: tuple[str, ...] = ()
    parts: bool = False
    """Whether the figures of single fields and classes are kept."""


WORKS = {
    "debtags": Work("data-curve", "data_curve", "0,50,200,400,800,1600", 0.9, parts=True),
    # 40 rows choose no checkpoint: what they cost to label would count for every size
    "translation": Work("translation", "data_curve_translation", "", settings=("finetune.validation.every=1000",)),
}
MOST_STEPS = 300
PUBLISHED = {
    "source": "arXiv:2407.13906",
    "task": "product attributes from HTML pages, another model",
    "points": {"0": 70.0, "200": 88.0},
    "said": "slower after 1,000 samples, best at about 6,500; what was gained late came from one rare attribute",
}


def result(found: dict[str, Any], work: Work) -> dict[str, Any]:
    """What of a curve is kept: the first grader's figures, of others those that speak of all rows, and of debtags what is published beside it."""
    from tunesmith.base.artifact import environment

    first = found["figures"][0]["grader"]
    figures = [one for one in found["figures"] if one["summary"] or (work.parts and one["grader"] == first)]
    figures = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 3))
    stamp = {"date": datetime.date.today().isoformat(), "environment": environment()}
    return {**stamp, **found, "figures": figures, "published": PUBLISHED if work.parts else None}


def beside(found: dict[str, Any]) -> str:
    """The published points beside the same sizes here."""
    points = {str(point["size"]): point for point in found["figures"][0]["points"]}
    lines = [f"published ({PUBLISHED['source']}, {PUBLISHED['task']}), and here:"]
    for size, value in PUBLISHED["points"].items():
        here = f"{points[size]['value']:.1f}" if size in points else "not measured"
        lines.append(f"  {size:>5} rows: {value:.0f} %, here {here}")
    return "\n".join([*lines, f"  {PUBLISHED['said']}"])


def main() -> None:
    """Train and measure what has no result yet, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, default="debtags")
    parser.add_argument("--sizes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--once-from", type=int, help="sizes from this one on are trained once")
    parser.add_argument("--most-steps", type=int, default=MOST_STEPS)
    parser.add_argument("--folder", type=Path, help="where the trainings are; by default in runs")
    parser.add_argument("--out", type=Path, help="folder for result and figure, in place of the committed ones")
    parser.add_argument("settings", nargs="*", help="path.to.field=value")
    given = parser.parse_args()

    from tunesmith.stages.curve import Curve, data_curve
    from tunesmith.stages.curve.text import markdown
    from tunesmith.stages.report.curve import figure

    work = WORKS[given.work]
    sizes = tuple(int(size) for size in (given.sizes or work.sizes).split(",") if size)
    spec = Curve(
        sizes=sizes, seeds=given.seeds, once_from=given.once_from, most_steps=given.most_steps, target=work.target
    )
    recipe, folder = ROOT / "recipes" / f"{work.recipe}.yaml", given.folder or ROOT / "runs" / work.result
    found = data_curve(recipe, spec, assignments=(*work.settings, *given.settings), folder=folder)
    for place, text in {
        (given.out or RESULTS) / f"{work.result}.json": json.dumps(result(found, work)) + "\n",
        (given.out or DOCS) / f"{work.result.replace('_', '-')}.svg": figure(found),
    }.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    print(markdown(found))
    if work.parts:
        print(beside(found))


if __name__ == "__main__":
    main()
