"""tunesmith's side of the DPO benchmark: `python ours_dpo.py --model FOLDER`; the reference's log-probabilities count as part of each step."""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402  the clock starts before anything is imported

from rows import ALPHA, LEARNING_RATE, PAIRS, RANK, SEED, preferences, report  # noqa: E402

from tunesmith.data.example import Example  # noqa: E402
from tunesmith.data.render import Renderer  # noqa: E402
from tunesmith.methods.adapters import trainable  # noqa: E402
from tunesmith.methods.adapters.lora import LoRA  # noqa: E402
from tunesmith.methods.objectives.dpo import DPO  # noqa: E402
from tunesmith.methods.optimizers.adamw import AdamW  # noqa: E402
from tunesmith.models.load import load  # noqa: E402
from tunesmith.training.batches import Dataset  # noqa: E402
from tunesmith.training.loop import train  # noqa: E402
from tunesmith.training.reference import with_references  # noqa: E402


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--model", default="smollm2-135m")
    given = parser.parse_args()
    loaded = load(given.model, "bf16")
    renderer = Renderer(loaded.tokenizer)
    rows = [
        renderer.row(Example(f"train:{number}", tuple(prompt), ((chosen,), (rejected,))))
        for number, (prompt, chosen, rejected) in enumerate(preferences()[: given.steps * PAIRS])
    ]
    LoRA(rank=RANK, alpha=ALPHA).attach(loaded, SEED)
    optimizer = AdamW(learning_rate=LEARNING_RATE, weight_decay=0.0).build(trainable(loaded.model))
    wall, cpu = time.perf_counter(), time.process_time()
    rows = with_references(loaded, rows, PAIRS)
    share_wall, share_cpu = (time.perf_counter() - wall) / given.steps, (time.process_time() - cpu) / given.steps
    data = Dataset(rows, PAIRS, PAIRS, 1, SEED)
    steps, losses, first = [], [], 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    for step in train(loaded, DPO(), data.from_step(0), optimizer, lambda _: 1.0, seed=SEED):
        now, used = time.perf_counter(), time.process_time()
        first = first or now
        steps.append({"tokens": step.tokens, "seconds": now - wall + share_wall, "cpu": used - cpu + share_cpu})
        losses.append(step.loss)
        wall, cpu = now, used
    report(steps, STARTED, first, losses)


if __name__ == "__main__":
    main()
