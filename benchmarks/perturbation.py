"""What moving all weights along a random direction costs against a forward pass over a step's rows, taken in turns in one process; `make bench`, or

python benchmarks/perturbation.py [--rounds 9]
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tunesmith.base.artifact import environment
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer
from tunesmith.kernels.noise import perturb
from tunesmith.methods.optimizers.mezo import places
from tunesmith.models.forward import token_logps
from tunesmith.models.load import load

sys.path.insert(0, str(Path(__file__).parent / "contenders"))
from rows import BATCH, messages

OUT = Path(__file__).parent / "results" / "perturbation.json"


@torch.no_grad()
def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    loaded = load("smollm2-135m", "bf16")
    renderer = Renderer(loaded.tokenizer)
    batch = Batch.of([renderer.row(Example("r:1", tuple(t[:-1]), ((t[-1],),))) for t in messages()[:BATCH]])
    starts = places([torch.nn.Parameter(one.detach().float()) for one in loaded.model.parameters()])

    def moved(noise: str) -> None:
        for one, place in starts.items():
            perturb(one.data, one.data, 7, place, keep=1.0, scale=1e-3, noise=noise)

    works: dict[str, Callable[[], object]] = {
        "forward": lambda: token_logps(loaded, batch),
        "normal": lambda: moved("normal"),
        "sign": lambda: moved("sign"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(given.rounds + 1):  # the first warms up
        for name, work in works.items():
            before = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - before)
    result = {
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "weights": sum(one.numel() for one in starts),
        "distinct_tokens": len(batch.forest.tokens_N),
        "milliseconds": {name: 1000 * statistics.median(taken) for name, taken in seconds.items()},
        "of_a_forward_pass": {
            name: statistics.median(a / b for a, b in zip(seconds[name], seconds["forward"], strict=True))
            for name in ("normal", "sign")
        },
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
