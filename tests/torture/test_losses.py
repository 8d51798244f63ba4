"""R12: every method takes the hundred steps that it took when its losses were stored, to the last bit on the same build."""

import json

import pytest
import torch
from losses import FILE, STEPS, build, course, methods

from tunesmith.kernels.products import fast_float32

FIRST, CLOSE = 10, 1e-4
"""On another build: steps that are compared, and the largest difference, relative to the loss."""
FEW = ("optimizer adamw", "optimizer mezo", "adapter full", "adapter moe", "objective dpo", "objective ppo")


@pytest.fixture(autouse=True)
def as_loaded():
    """Products as `load` has them."""
    torch.set_num_threads(1)
    fast_float32()


def test_losses_are_those_that_were_stored(tally, many):
    kept, here = json.loads(FILE.read_text()), build()
    same = kept["build"] == here
    title = "100 steps of every method: the stored losses, to the last bit" if same else "10 steps of every method: the stored losses within 1e-4, on another build"  # fmt: skip
    counted, steps = tally("R12", title), many(STEPS, 20) if same else FIRST
    for name, method in methods().items():
        if name not in FEW and not many(1, 0):
            continue
        found, wanted = course(method, steps), kept["losses"].get(name, [])[:steps]
        off = [abs(one - other) / max(1.0, abs(other)) for one, other in zip(found, wanted, strict=False)]
        held = found == wanted if same else len(off) == steps and max(off) <= CLOSE
        first = next((number for number, one in enumerate(off) if one), 0)
        counted.verdict(
            name,
            held,
            reason=f"from step {first} on; off by {max(off, default=1):.1e}; write them anew if that is meant",
        )
    assert set(kept["losses"]) == set(methods()), "python tests/torture/losses.py writes the losses of new methods"


def test_another_loss_would_be_seen():
    """One step's rate a thousandth higher changes the bits of the next."""
    adapter, objective, optimizer = methods()["optimizer adamw"]
    moved = optimizer.model_copy(update={"learning_rate": optimizer.learning_rate * 1.001})
    assert course((adapter, objective, moved), 4) != course((adapter, objective, optimizer), 4)
