"""Every recipe in `recipes/methods`, three seeds each, measured alike: the table of docs/methods.md.

    python benchmarks/methods.py [NAME ...] [--seeds 0 1 2]    # trains and measures what has no result yet
    python benchmarks/methods.py --cost [NAME ...]             # seconds of a step against LoRA's, taken in turns; wants a quiet machine

A recipe's result is `benchmarks/results/methods/NAME.json`.
"""

import argparse
import datetime
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from methods_table import BASE, RECIPES, ROOT, TEXT, figures, keep, kept

SEEDS = (0, 1, 2)
TEST = 100
"""Held-out rows, the same for all."""
HELD_OUT = "held-out-pairs"
"""What `start` calls pairs of the test rows' right answers and the tuned model's wrong ones."""
HELD_OUT_TEXTS = "held-out-texts"
"""What `start` calls the descriptions in the test rows."""
PAIRS = "pairs"
"""What is counted of a reward model, in the place of attributes."""
STEPS = 5
"""Of a training whose cost is measured; the first warms up."""
TURNS = 3
"""Recipes whose cost is measured between two measurements of the base."""


def one(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train a recipe with one seed and measure what it came to, in this process."""
    import torch
    from methods_learning import learning

    from tunesmith.base.artifact import environment
    from tunesmith.data.prepared import load_examples
    from tunesmith.data.render import Renderer
    from tunesmith.models.generate import Sampling
    from tunesmith.models.load import load, served
    from tunesmith.stages.general import general_examples
    from tunesmith.stages.judge import answer, likelihoods, merge
    from tunesmith.stages.pipeline import open_run

    pipeline = open_run(RECIPES / f"{name}.yaml", folder, (f"seed={seed}",))
    recipe, tuned = pipeline.recipe, pipeline.locked("finetune")
    pruned = pipeline.locked("prune") if recipe.prune.method else None
    metrics = tuned.metrics if pruned is None else pruned.metrics["recovery"] or tuned.metrics
    peaks = [each["peak_memory_mb"] for each in (tuned.metrics, metrics)]
    loaded = load(recipe.model, served(recipe.precision))
    general = [Renderer(loaded.tokenizer).row(example) for example in general_examples("bundled")]
    before = likelihoods(loaded, general)
    merge(loaded, pipeline.adapter, tuned, recipe.precision, pruned)
    after = likelihoods(loaded, general)
    grader = recipe.evaluate.graders[0]
    if recipe.finetune.objective.scores:
        measured = {"measure": PAIRS, **pairs_ordered(pipeline, loaded, tuned)}
    elif grader.reads == "likelihoods":
        measured = {"measure": TEXT, "likelihoods": likelier(pipeline, loaded)}
    else:
        test = load_examples(pipeline.prepare().path, "test")
        answers = answer(loaded, test, Sampling(max_tokens=recipe.evaluate.max_tokens))
        scores = [grader.score(given, example) for given, example in zip(answers, test, strict=True)]
        measured = {"hits": [score.hits for score in scores], "totals": [score.total for score in scores]}
    return {
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "threads": torch.get_num_threads(),
        **learning(recipe),
        "steps": metrics["steps"],
        "loss": metrics["best_value"],
        "tokens_per_second": metrics["tokens_per_second"],
        "peak_memory_mb": max(peaks),
        **measured,
        "forgetting": beside(before, after),
    }


def beside(before: list[Any], after: list[Any]) -> list[list[float]]:
    """Of each row its negative log-likelihood before and after, in nats, and its tokens."""
    return [[was.loss, now.loss, now.tokens] for was, now in zip(before, after, strict=True)]


def likelier(pipeline: Any, loaded: Any) -> list[list[float]]:
    """Of a model of plain text, which is asked nothing: likelihoods of the held-out texts, of the base and of what became of it."""
    from tunesmith.data.prepared import load_split
    from tunesmith.models.load import load, served
    from tunesmith.stages.judge import likelihoods

    rows = load_split(pipeline.prepare().path, "test")
    base = load(pipeline.recipe.model, served(pipeline.recipe.precision))
    return beside(likelihoods(base, rows), likelihoods(loaded, rows))


def pairs_ordered(pipeline: Any, loaded: Any, tuned: Any) -> dict[str, list[float]]:
    """Of a reward model, which writes no answers: whether it orders each held-out pair rightly; two scores that are equal are half right."""
    from tunesmith.data.prepared import load_examples, load_split
    from tunesmith.models.heads import restore_head
    from tunesmith.models.scorer import score_rows

    folder = pipeline.prepare().path
    restore_head(loaded, tuned / "adapter")
    scores = score_rows(loaded, load_split(folder, "test"))
    figures = pipeline.recipe.evaluate.graders[0].figures(load_examples(folder, "test"), scores)
    hits, totals = figures["headline"].statistics.T.tolist()
    return {"hits": hits, "totals": totals}


def begins_tuned(name: str) -> bool:
    """Whether a recipe, or the one that it extends, begins with what `start` makes."""
    text = (RECIPES / f"{name}.yaml").read_text()
    below = next(line for line in (*text.splitlines(), "extends: base.yaml") if line.startswith("extends: "))
    return "runs/methods" in text or (below != "extends: base.yaml" and begins_tuned(Path(below.split()[-1]).stem))


def start() -> None:
    """What recipes that go on from a tuned model begin with, in `runs/methods`: that model, pairs of right answers and its wrong ones, such pairs of the
    test rows, the answers of the former one by one, and its best answers."""
    folder = ROOT / "runs" / "methods"
    asked = ("sample.rewards=[{grader: {kind: json_fields}}]", "sample.max_tokens=48", "sample.rows=96")
    wanted = {
        "pairs": ("sample.keep=pairs", "sample.most=2"),
        "best": ("sample.keep=best",),
        HELD_OUT: ("sample.keep=pairs", f"sample.rows={TEST}"),
    }
    for name, settings in {"start": (), **wanted}.items():
        to = folder / (name if name == "start" else f"{name}.jsonl")
        if (to / "deployed").exists() or to.is_file():
            continue
        code = "from tunesmith.cli import main; main()"
        given = ("run", str(RECIPES / "base.yaml"), "--run", str(to), "deploy.ungated=true")
        source = held_out(folder) if name == HELD_OUT else (str(folder / "start"),)
        command = given if name == "start" else ("sample", *source, *asked, *settings)
        done = subprocess.run([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, check=True)
        if name == "start":
            (to / "deployed").touch()
        else:
            to.write_bytes(Path(done.stdout.strip().splitlines()[-1]).read_bytes())
    held = [json.loads(line) for line in (folder / f"{HELD_OUT}.jsonl").read_text().splitlines()]
    lines = (
        json.dumps({**pair, **earned(pair, "chosen")}) + "\n" for pair in held
    )  # a column of the rows to learn from is one of these too
    (folder / f"{HELD_OUT}.jsonl").write_text("".join(lines))
    for name, mark in {"judged": wanted_or_not, "marked": earned}.items():
        (folder / f"{name}.jsonl").write_text("".join(answers_apart(folder / "pairs.jsonl", mark)))
    (folder / "texts.jsonl").write_text("".join(texts("train")))
    (folder / f"{HELD_OUT_TEXTS}.jsonl").write_text("".join(islice(texts("test"), TEST)))


def answers_apart(pairs: Path, mark: Callable[[dict[str, Any], str], dict[str, Any]]) -> Iterator[str]:
    """Each answer of the pairs once, as a row of its own with its mark."""
    known = set()
    for pair in map(json.loads, pairs.read_text().splitlines()):
        for side in ("chosen", "rejected"):
            row = json.dumps({"prompt": pair["prompt"], "completion": pair[side], **mark(pair, side)})
            if row not in known:
                yield row + "\n"
            known.add(row)


def wanted_or_not(pair: dict[str, Any], side: str) -> dict[str, Any]:
    """Which of the two an answer is."""
    return {"label": side == "chosen"}


def earned(pair: dict[str, Any], side: str) -> dict[str, Any]:
    """The share of attributes that an answer has right."""
    return {"score": pair[f"reward_{side}"]}


def texts(source: str) -> Iterator[str]:
    """What the rows' questions say of packages, without what is asked about them."""
    with gzip.open(ROOT / "examples" / "debtags" / f"{source}.jsonl.gz", "rt") as lines:
        for line in lines:
            _, _, description = json.loads(line)["messages"][0]["content"].partition("\n")
            yield json.dumps({"text": description}) + "\n"


def held_out(folder: Path) -> tuple[str, ...]:
    """What `sample` is given for the tuned model, as the base of a run of its own, to answer the test rows as if they were there to learn from."""
    rows = f"source={ROOT / 'examples' / 'debtags' / 'test.jsonl.gz'}", f"rows={TEST}", "test=null", "test_rows=null"
    alone = "test_fraction=0", "validation_fraction=0", "cleaners=[]"
    run = str(RECIPES / "base.yaml"), "--run", str(folder / HELD_OUT)
    return (*run, f"model={folder / 'start'}", "sample.system=base", *(f"prepare.{each}" for each in (*rows, *alone)))


def cost(name: str, folder: Path) -> dict[str, Any]:
    """Seconds a step and tokens a second of a few steps, in this process; the first warms up, or the first answers and all that is learnt from them.

    Of what is pruned, the steps of its recovery.
    """
    import torch

    from tunesmith.base.artifact import environment
    from tunesmith.stages.pipeline import open_run
    from tunesmith.stages.recipe import read_recipe

    recipe = RECIPES / f"{name}.yaml"
    trained = ["finetune"] if read_recipe(recipe).prune.method is None else ["finetune", "prune.recovery"]
    few = [setting for part in trained for setting in (f"{part}.epochs={STEPS / 12}", f"{part}.schedule.warmup=0")]
    pipeline = open_run(recipe, folder, (*few, "prepare.validation_fraction=0"))
    tuned = pipeline.locked("finetune" if len(trained) == 1 else "prune")
    rollouts = pipeline.recipe.finetune.rollouts
    steps = list(pipeline.run.events.tagged(artifact=tuned.path.name).read("step"))[
        rollouts.updates if rollouts else 1 :
    ]
    seconds, tokens = (sum(step[name] for step in steps) for name in ("seconds", "tokens"))
    place = {"environment": environment(), "threads": torch.get_num_threads()}
    return {"seconds": seconds / len(steps), "rate": tokens / seconds, **place}


def costs(names: list[str]) -> None:
    """Measure recipes' steps in turns with the base's, before and after every few, in processes of their own."""
    names = [name for name in names if name != BASE]
    before = apart(BASE, "--cost")
    for place in range(0, len(names), TURNS):
        found = {}
        for name in names[place : place + TURNS]:
            try:
                found[name] = apart(name, "--cost")
            except SystemExit as error:  # the others' cost is worth knowing all the same
                print(error, file=sys.stderr)
        after = apart(BASE, "--cost")
        lora = {key: (before[key] + after[key]) / 2 for key in ("seconds", "rate")}
        for name, method in found.items():
            place = {key: method.pop(key) for key in ("environment", "threads")}
            taken = {"date": datetime.date.today().isoformat(), **place, "method": method, "lora": lora}
            keep(name, {**kept(name), "cost": taken})
            print(
                f"{name:18s} {method['rate']:.0f} tokens/s, LoRA {before['rate']:.0f} and {after['rate']:.0f}",
                flush=True,
            )
        before = after


def apart(*arguments: str) -> dict[str, Any]:
    """What this file says of `arguments` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *arguments, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-500:]}\n{done.stderr[-2500:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def main() -> None:
    """Measure what is asked for and not known yet."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="*", default=names)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--cost", action="store_true", help="measure the time of steps")
    parser.add_argument("--one", type=int, help="train with this seed, here and now")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.folder:
        found = cost(given.name[0], given.folder) if given.cost else one(given.name[0], given.one, given.folder)
        print("RESULT " + json.dumps(found), flush=True)
        return
    if any(begins_tuned(name) for name in given.name):
        start()
    if given.cost:
        costs(given.name)
        return
    for name in given.name:
        for seed in given.seeds:
            known = kept(name)
            if seed in [run["seed"] for run in known["runs"]]:
                continue
            found = apart(name, "--one", str(seed))
            keep(name, {**known, "runs": [*known["runs"], found]})
            print(f"{name:18s} seed {seed}: {figures([found])[0].point:.1f} %, loss {found['loss']:.3f}", flush=True)


if __name__ == "__main__":
    main()
