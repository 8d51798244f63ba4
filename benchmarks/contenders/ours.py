"""tunesmith's side of the SFT benchmark: `python ours.py [--full] [--dora] [--fp32] [--int8] [--generic] [--no-sharing]`."""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402  the clock starts before anything is imported
from collections.abc import Iterable, Iterator  # noqa: E402
from typing import Any  # noqa: E402

from rows import ALPHA, BATCH, LEARNING_RATE, RANK, ROWS, SEED, messages, peak_megabytes, report  # noqa: E402

from tunesmith.data.batch import Batch  # noqa: E402
from tunesmith.data.example import Example  # noqa: E402
from tunesmith.data.render import Renderer  # noqa: E402
from tunesmith.kernels.memory import Peak  # noqa: E402
from tunesmith.methods.adapters import trainable  # noqa: E402
from tunesmith.methods.adapters.dora import DoRA  # noqa: E402
from tunesmith.methods.adapters.full import Full  # noqa: E402
from tunesmith.methods.adapters.lora import LoRA  # noqa: E402
from tunesmith.methods.objectives.sft import SFT  # noqa: E402
from tunesmith.methods.optimizers import Optimizer  # noqa: E402
from tunesmith.methods.optimizers.adamw import AdamW  # noqa: E402
from tunesmith.models.load import load  # noqa: E402
from tunesmith.training.batches import Dataset  # noqa: E402
from tunesmith.training.loop import train  # noqa: E402


def large(model: Any) -> tuple[int, int]:
    """Weights that every token passes through, and those behind the last layer's attention, the head among them, that supervised places alone do."""
    late = ("o_proj", "gate_proj", "up_proj", "down_proj")
    own = [
        {name.rpartition(".")[2]: one.weight.numel() for name, one in layer.named_modules() if name.endswith("_proj")}
        for layer in model.model.layers
    ]
    behind = sum(own[-1][name] for name in late)
    return sum(map(sum, (layer.values() for layer in own))) - behind, behind + model.lm_head.weight.numel()


def operations(weights: tuple[int, int], batch: Batch) -> float:
    """Floating point operations of a pass's large products, forward and backward to their inputs; attention, corrections and gradients of weights are not counted."""
    return 4.0 * (weights[0] * len(batch.forest.tokens_N) + weights[1] * len(batch.target_M))


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--generic", action="store_true", help="transformers' own layers")
    parser.add_argument("--no-sharing", action="store_true", help="every row whole")
    parser.add_argument("--full", action="store_true", help="all weights learn")
    parser.add_argument("--dora", action="store_true", help="the magnitude of each output learns too")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--int8", action="store_true", help="the frozen base rounded to int8")
    parser.add_argument("--checkpointing", action="store_true", help="the backward computes layers again")
    parser.add_argument(
        "--compile", action="store_true", help="transformers' layers through torch.compile, with --generic"
    )
    parser.add_argument("--offload", action="store_true", help="the optimizer's moments in a file")
    parser.add_argument("--optimizer", help="another than AdamW, by its kind and with its defaults")
    given = parser.parse_args()
    loaded = load(given.model, "fp32" if given.fp32 else "int8" if given.int8 else "bf16")
    weights = large(loaded.model)
    loaded.fuse, loaded.checkpointing = not given.generic, given.checkpointing
    renderer = Renderer(loaded.tokenizer)
    rows = [
        renderer.row(Example(f"train:{number}", tuple(talk[:-1]), ((talk[-1],),)))
        for number, talk in enumerate(messages())
    ]
    moves: Optimizer = AdamW(learning_rate=LEARNING_RATE, weight_decay=0.0, offload=given.offload)
    moves = Optimizer.member(given.optimizer)() if given.optimizer else moves
    if moves.moves_frozen:
        loaded.model.float()
    (Full() if given.full else (DoRA if given.dora else LoRA)(rank=RANK, alpha=ALPHA)).attach(loaded, SEED)
    if given.compile:
        for layer in loaded.model.model.layers:
            layer.compile(dynamic=True)
    loading = peak_megabytes()
    learning = trainable(loaded.model)
    frozen = {name: one for name, one in loaded.model.named_parameters() if name not in learning}
    peak, optimizer = Peak(), moves.over(learning, frozen)
    data = Dataset(rows, BATCH, BATCH, given.steps * BATCH / ROWS, SEED, share=not given.no_sharing)
    steps, losses = [], []
    wall, cpu, first = time.perf_counter(), time.process_time(), 0.0
    work: list[float] = []

    def counted(batches: Iterable[Any]) -> Iterator[Any]:
        for parts in batches:
            work.append(sum(operations(weights, batch) for batch in parts))
            yield parts

    for step in train(loaded, SFT(), counted(data.from_step(0)), optimizer, lambda _: 1.0, seed=SEED):
        now, used = time.perf_counter(), time.process_time()
        first = first or now
        steps.append({"tokens": step.tokens, "seconds": now - wall, "cpu": used - cpu, "operations": work[len(steps)]})
        losses.append(step.loss)
        wall, cpu = now, used
    training = peak.megabytes
    more = {"loading_peak_mb": loading, "training_peak_mb": training, "peak_rss_mb": max(loading, training)}
    report(steps, STARTED, first, losses, **more)


if __name__ == "__main__":
    main()
