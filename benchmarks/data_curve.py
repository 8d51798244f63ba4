"""How much data is enough for debtags: three seeds at each size, beside what is published of another task.

    python benchmarks/data_curve.py                         # goes on where it was stopped; the trainings are in runs/data_curve
    python benchmarks/data_curve.py --sizes 0,4,8,16 --seeds 1 --out /tmp/curve model=PATH     # to see that it works

The result is `benchmarks/results/data_curve.json`, the figure `docs/data-curve.svg`; `benchmarks/readme.py` puts both into docs/data-curve.md.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECIPE, RESULT, FIGURE = (
    ROOT / "recipes" / "data-curve.yaml",
    ROOT / "benchmarks" / "results" / "data_curve.json",
    ROOT / "docs" / "data-curve.svg",
)
SIZES = "0,25,50,100,200,400,800,1600"
MOST_STEPS = 600
KEPT = ("json_fields", "classes")
"""Graders whose figures are kept in the result: of the second those that speak of all rows."""
PUBLISHED = {
    "source": "arXiv:2407.13906",
    "task": "product attributes from HTML pages, another model",
    "points": {"0": 70.0, "200": 88.0},
    "said": "slower after 1,000 samples, best at about 6,500; what was gained late came from one rare attribute",
}


def result(found: dict[str, Any]) -> dict[str, Any]:
    """What of a curve is kept, with the published one beside it."""
    from tunesmith.base.artifact import environment

    first, second = KEPT
    figures = [
        one for one in found["figures"] if one["grader"] == first or (one["grader"] == second and one["summary"])
    ]
    figures = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 3))
    stamp = {"date": datetime.date.today().isoformat(), "environment": environment()}
    return {**stamp, **found, "figures": figures, "published": PUBLISHED}


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
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--once-from", type=int, help="sizes from this one on are trained once")
    parser.add_argument("--most-steps", type=int, default=MOST_STEPS)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "data_curve", help="where the trainings are")
    parser.add_argument("--out", type=Path, help="folder for result and figure, in place of the committed ones")
    parser.add_argument("settings", nargs="*", help="path.to.field=value")
    given = parser.parse_args()

    from tunesmith.stages.curve import Curve, data_curve
    from tunesmith.stages.curve.text import markdown
    from tunesmith.stages.report.curve import figure

    sizes = tuple(int(size) for size in given.sizes.split(","))
    spec = Curve(sizes=sizes, seeds=given.seeds, once_from=given.once_from, most_steps=given.most_steps, target=0.9)
    found = data_curve(RECIPE, spec, assignments=tuple(given.settings), folder=given.folder)
    places = [given.out / RESULT.name, given.out / FIGURE.name] if given.out else [RESULT, FIGURE]
    for place, text in zip(places, (json.dumps(result(found)) + "\n", figure(found)), strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    print(markdown(found))
    print(beside(found))


if __name__ == "__main__":
    main()
