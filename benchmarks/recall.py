"""Sixteen codes that nobody can know, taught to SmolLM2-135M by memory experts and by LoRA: what is recalled, and what other text costs.

    python benchmarks/recall.py [--seeds 0 1 2]

Both learn until no fact loses more than a hundredth of a nat a token, or for `STEPS` steps. The result is `benchmarks/results/recall.json`, a table of docs/methods.md.
"""

import argparse
import datetime
import json
import math
import random
from pathlib import Path
from typing import Any

from tunesmith.base.artifact import environment
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example, Row
from tunesmith.data.render import Renderer
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.adapters.memory import Memory
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import Loaded, load
from tunesmith.models.memory import memories
from tunesmith.stages.general import general_examples
from tunesmith.stages.judge import likelihoods
from tunesmith.training.loop import train

RESULT = Path(__file__).parent / "results" / "recall.json"
SYLLABLES = ("ka", "lo", "mi", "ru", "ve", "tan", "sor", "bel")
FACTS, STEPS = 16, 60
WAYS: dict[str, tuple[Adapter, float]] = {"memory": (Memory(), 0.01), "lora": (LoRA(), 0.001)}
"""Adapters with their learning rates."""


def facts(seed: int) -> list[Example]:
    """Questions for the codes of invented names."""
    drawn = random.Random(seed)
    names = sorted({"".join(drawn.choices(SYLLABLES, k=3)).capitalize() for _ in range(3 * FACTS)})[:FACTS]
    codes = [f"{drawn.choice('ABCDEFG')}{drawn.randrange(1000, 9999)}" for _ in names]
    return [example(n, f"What is the code of {name}?", codes[n]) for n, name in enumerate(names)]


def example(number: int, question: str, answer: str) -> Example:
    """A question and its answer, as a conversation."""
    asked, said = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return Example(f"fact:{number}", (asked,), ((said,),))


def lost(loaded: Loaded, rows: list[Row]) -> list[float]:
    """Nats lost on text of other kinds, by row."""
    loaded.model.eval()
    return [each.loss for each in likelihoods(loaded, rows)]


def measure(adapter: Adapter, rate: float, seed: int) -> dict[str, Any]:
    """Teach, ask, and compare."""
    loaded = load("smollm2-135m", "fp32")
    renderer, taught = Renderer(loaded.tokenizer), facts(seed)
    rows, others = ([renderer.row(each) for each in some] for some in (taught, general_examples("bundled")))
    before, objective = lost(loaded, others), SFT(enough=0.01)
    adapter.attach(loaded, seed)
    adapter.begin(loaded, rows, seed)
    optimizer, steps = AdamW(learning_rate=rate).build(trainable(loaded.model)), 0
    for step in train(loaded, objective, [[Batch.of(rows)]] * STEPS, optimizer, lambda _: 1.0, seed=seed):
        steps = step.number + 1
        if step.loss == 0:
            break
    after = lost(loaded, others)
    answers = generate(loaded, [renderer.prompt(fact.prompt, ()) for fact in taught], Sampling(max_tokens=12))
    right = sum(answer.text.strip() == fact.gold for answer, fact in zip(answers, taught, strict=True))
    learnt = [int(one.memory_B.detach().flatten(1).any(1).sum()) for one in memories(loaded.model).values()]
    tokens = sum(int(row.sequences[0].learn.sum()) for row in others)
    rise = math.expm1((sum(after) - sum(before)) / tokens)
    found = {"seed": seed, "steps": steps, "above": step.loss, "recalled": right, "facts": len(taught), "rise": rise}
    return {**found, "experts_learnt": sum(learnt), "experts": getattr(adapter, "experts", 0) * len(learnt)}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    works: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for seed in given.seeds:
        for name, (adapter, rate) in WAYS.items():
            works[name].append(measure(adapter, rate, seed))
            print(name, works[name][-1], flush=True)
    stamp = {"date": datetime.date.today().isoformat(), "environment": environment()}
    given.out.write_text(json.dumps({**stamp, "works": works}, indent=1) + "\n")


if __name__ == "__main__":
    main()
