"""Ways to choose which rows to learn from, compared at equal size on the same test rows: 96 of 1,000 descriptions of Debian packages.

    python benchmarks/selection.py [KIND ...] [--seeds 3] [--size 96] [--set path.to.field=value ...]

Every way is trained with the same seeds, which draw its rows too where it draws; differences are from rows drawn at random. What was trained before, in `runs/selection`, is
not trained again, so a run that was stopped goes on. The result is `benchmarks/results/selection.json`.
"""

import argparse
import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "selection.json"
WAYS = {
    "stratified": "{kind: stratified, by: answer.*, size: %d}",
    "diversity": "{kind: diversity, size: %d}",
    "hardest": "{kind: difficulty, take: hardest, size: %d}",
    "middle": "{kind: difficulty, take: middle, size: %d}",
    "el2n": "{kind: difficulty, measure: el2n, take: hardest, size: %d}",
    "el2n-middle": "{kind: difficulty, measure: el2n, take: middle, size: %d}",
    "distinct": "{kind: distinct, size: %d}",
}
SETTINGS = (
    "prepare.rows=1020", "prepare.validation_fraction=20", "prepare.group=source", "prepare.classes=answer.*", "prepare.test_rows=200",
    "evaluate.graders=[{kind: json_fields}, {kind: classes, by: answer.*}]",
)  # fmt: skip
"""What is trained is `recipes/methods/base.yaml` but for this: more rows to choose from, more to measure by, and what is rare counts."""


def work(pipeline: Any, name: str) -> Any:
    """Train and ask."""
    from tunesmith.stages.compare import GIVEN

    asked = pipeline.stage("ask")
    print(f"{'random' if name == GIVEN else name}, seed {pipeline.recipe.seed}: {asked.path.name}", flush=True)
    return asked


def chosen(folder: Path, found: dict[str, Any]) -> dict[str, list[Any]]:
    """Per variant and seed what the summary of its rows says of how they were chosen, and what they are of."""
    told = {}
    for variant in found["variants"]:
        told[variant["name"]] = []
        for run in variant["runs"]:
            parents = json.loads((folder / run["finetune"] / "manifest.json").read_text())["parents"]
            prepared = next(parent["folder"] for parent in parents if parent["stage"] == "prepare")
            selection = json.loads((folder / prepared / "summary.json").read_text())["selection"]
            told[variant["name"]].append({**selection, "attributes": attributes(folder / prepared)})
    return told


def attributes(prepared: Path) -> dict[str, int]:
    """How many of the rows to learn from have each attribute in their answer."""
    from tunesmith.data.prepared import load_examples

    return dict(
        Counter(name for example in load_examples(prepared, "train") for name in json.loads(example.gold)).most_common()
    )


def main() -> None:
    """Compare, and write the result."""
    import torch

    from tunesmith.base.artifact import environment
    from tunesmith.stages.compare import compare

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", nargs="*", help=f"some of {', '.join(WAYS)}; all if none is named")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--set", nargs="*", default=[], help="further settings, of all")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "selection")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    if unknown := [kind for kind in given.kind if kind not in WAYS]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(WAYS)}")
    kinds = given.kind or list(WAYS)
    random = f"prepare.select={{kind: random, size: {given.size}}}"
    found = compare(
        ROOT / "recipes" / "methods" / "base.yaml",
        [f"prepare.select={WAYS[kind] % given.size}" for kind in kinds],
        seeds=given.seeds,
        assignments=(*SETTINGS, random, *given.set),
        folder=given.folder,
        work=work,
    )
    about = {
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "size": given.size,
        "chosen": chosen(given.folder, found),
    }
    given.result.write_text(json.dumps({**about, **found}) + "\n")
    print((given.folder / "compare.md").read_text())


if __name__ == "__main__":
    main()
