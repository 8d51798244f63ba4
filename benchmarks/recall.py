"""Sixteen codes that nobody can know, taught to SmolLM2-135M by memory experts: what is recalled, and what other text costs."""

import random
import time

import torch

from tunesmith.data.batch import Batch
from tunesmith.data.example import Example, Row
from tunesmith.data.render import Renderer
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.memory import Memory
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.forward import token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import Loaded, load
from tunesmith.models.memory import memories
from tunesmith.training.loop import train

SYLLABLES = ("ka", "lo", "mi", "ru", "ve", "tan", "sor", "bel")
OTHERS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("What is the zip code of Boston?", "Boston has many zip codes, such as 02108."),
)
STEPS = 30


def example(number: int, question: str, answer: str) -> Example:
    """A question and its answer, as a conversation."""
    asked, said = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return Example(f"fact:{number}", (asked,), ((said,),))


@torch.no_grad()
def perplexity(loaded: Loaded, rows: list[Row]) -> float:
    """Of the answers' tokens."""
    loaded.model.eval()
    return float((-token_logps(loaded, Batch.of(rows)).mean()).exp())


def main() -> None:
    """Teach, ask, and compare."""
    drawn = random.Random(0)
    names = sorted({"".join(drawn.choices(SYLLABLES, k=3)).capitalize() for _ in range(20)})[:16]
    codes = [f"{drawn.choice('ABCDEFG')}{drawn.randrange(1000, 9999)}" for _ in names]
    loaded = load("smollm2-135m", "fp32")
    renderer = Renderer(loaded.tokenizer)
    facts = [example(n, f"What is the code of {name}?", codes[n]) for n, name in enumerate(names)]
    rows = [renderer.row(fact) for fact in facts]
    others = [renderer.row(example(n, *other)) for n, other in enumerate(OTHERS)]
    before, adapter, objective = perplexity(loaded, others), Memory(), SFT(enough=0.01)
    adapter.attach(loaded, seed=0)
    adapter.begin(loaded, rows, seed=0)
    optimizer, began = AdamW(learning_rate=0.01).build(trainable(loaded.model)), time.monotonic()
    for step in train(loaded, objective, [[Batch.of(rows)]] * STEPS, optimizer, lambda _: 1.0, seed=0):
        if step.loss == 0:
            break
    print(f"{step.number + 1} steps, {time.monotonic() - began:.0f} seconds, loss above enough: {step.loss:.4f}")
    after = perplexity(loaded, others)
    answers = generate(loaded, [renderer.prompt(fact.prompt, ()) for fact in facts], Sampling(max_tokens=12))
    right = sum(answer.text.strip() == code for answer, code in zip(answers, codes, strict=True))
    moved = sum(int(one.memory_B.detach().flatten(1).any(1).sum()) for one in memories(loaded.model).values())
    print(f"{right} of {len(codes)} codes recalled; {moved} of {adapter.experts} experts learnt")
    print(f"perplexity of other answers: {before:.4f} before, {after:.4f} after")


if __name__ == "__main__":
    main()
