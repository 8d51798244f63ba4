"""R9: however the rows of a step are split, packed or padded, its gradient is the one that float64 finds for all of them at once."""

import copy
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch
from subjects import write_rows
from transformers import AutoTokenizer

from tunesmith.data.batch import Batch
from tunesmith.kernels import native
from tunesmith.kernels.products import EXACT, fast_float32
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train
from tunesmith.training.ranks import ALONE

SPLITS = {"8x1": 1, "4x2": 2, "2x4": 4, "1x8": 8}
"""Forward and backward passes of a step, by rows of one pass; the second step has five rows."""
ERROR = 1e-6
SHAPES = {
    "llama": {}, "qwen3": {}, "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 64}, "qwen2": {}, "phi3": {"sliding_window": None},
}  # fmt: skip


def taken(loaded, batches, ranks=ALONE):
    """A step's loss, and the gradient that it is taken with, unclipped; `ranks` share its passes."""
    caught = {}

    class Catch(torch.optim.SGD):
        def step(self, closure):
            super().step(closure)
            caught.update({name: one.grad.clone() for name, one in trainable(loaded.model).items()})

    optimizer = Catch(trainable(loaded.model).values(), lr=0.0)
    (step,) = train(loaded, SFT(), [batches], optimizer, lambda _: 1.0, seed=0, clip=0, ranks=ranks)
    return step.loss, caught


def reference(model, rows):
    """The loss and gradients of all rows at once in float64: sequences padded on the right, transformers' own layers and attention."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    model.requires_grad_(True)
    sequences = [row.sequences[0] for row in rows]
    width = max(map(len, sequences))
    ids_BT, learn_BT = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
    for place, one in enumerate(sequences):
        ids_BT[place, : len(one)] = torch.from_numpy(one.tokens.astype("int64"))
        learn_BT[place, : len(one)] = torch.from_numpy(one.learn)
    mask_BT = torch.arange(width) < torch.tensor(list(map(len, sequences)))[:, None]
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False).logits
    assert logits_BTV.dtype == torch.float64
    logp_BT = logits_BTV[:, :-1].log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
    loss = -logp_BT[learn_BT[:, 1:]].mean()
    loss.backward()
    return float(loss.detach()), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def expected(tiny, kind, fields, adapter, rows):
    """As `reference`, of what learns: of an adapter's factors by the chain rule, from the gradient of the weight that they add to."""
    loaded = attached(tiny, kind, fields, adapter)
    if not isinstance(adapter, LoRA):
        return reference(loaded.model, rows)
    layers = {
        name: (one.lora_A.double(), one.lora_B.double(), one.scale)
        for name, one in adapter.layers(loaded.model).items()
    }
    plain = tiny(kind, initializer_range=0.05, **fields).model.double()
    with torch.no_grad():
        for name, (down_RI, up_OR, scale) in layers.items():
            plain.get_submodule(name).weight += scale * up_OR @ down_RI
    loss, found = reference(plain, rows)
    gradients = {}
    for name, (down_RI, up_OR, scale) in layers.items():
        slope_OI = found[f"{name}.weight"]
        gradients[f"{name}.lora_A"] = (scale * up_OR.T @ slope_OI).detach()
        gradients[f"{name}.lora_B"] = (scale * slope_OI @ down_RI.T).detach()
    return loss, gradients


def attached(tiny, kind, fields, adapter):
    """The same model each time, with what learns moved away from where nothing of it would show."""
    loaded = tiny(kind, initializer_range=0.05, **fields)
    adapter.attach(loaded, 1)
    if isinstance(adapter, LoRA):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for layer in adapter.layers(loaded.model).values():
                layer.lora_B.copy_(0.02 * torch.randn(layer.lora_B.shape, generator=generator))
    return loaded


def apart(found, wanted):
    """Length of the difference of two gradients, relative to the second's."""
    assert set(found) == set(wanted)
    off, whole = (
        torch.cat([one.flatten() for one in each]).norm()
        for each in ([found[name].double() - wanted[name] for name in wanted], list(wanted.values()))
    )
    return float(off / whole)


def test_a_split_step_has_the_gradient_of_the_whole_one(tally, tiny, random_rows, many):
    counted = tally("R9", "steps split 8x1, 4x2, 2x4, 1x8, a short one too: gradient within 1e-6 of float64, same order")  # fmt: skip
    fast_float32()
    rows, worst, orders = random_rows(13), {}, set()
    for kind, fields in list(SHAPES.items())[: many(5, 1)]:
        for adapter in (Adapter.member("full")(), LoRA(rank=4)):
            sides = Dataset(rows, 8, 8, 1, 0)
            wanted = [
                expected(tiny, kind, fields, adapter, [rows[place] for place in sides.chosen(step)]) for step in (0, 1)
            ]
            for split, size in SPLITS.items():
                for way in ("prefixes shared", "packed", "packed, plain operations", "padded"):
                    loaded = attached(tiny, kind, fields, adapter)
                    if way == "padded":  # as an architecture that takes no forest is trained
                        loaded.forest = False
                        loaded.model.set_attn_implementation("eager")
                    data = Dataset(rows, 8, size, 1, 0, way == "prefixes shared")
                    assert (data.steps, len(data.chosen(1))) == (2, 5)
                    orders.add(order(data))
                    for step in (0, 1):
                        if way == "packed, plain operations":
                            with native.disabled():
                                loss, gradient = taken(loaded, data.step(step))
                        else:
                            loss, gradient = taken(loaded, data.step(step))
                        error = apart(gradient, wanted[step][1])
                        off = abs(loss - wanted[step][0]) / wanted[step][0]
                        worst[way] = max(worst.get(way, 0.0), error)
                        name = f"{kind} {adapter.kind} {split} {way}, step of {8 if step == 0 else 5} rows"
                        held = error <= ERROR and off <= ERROR
                        counted.note(
                            name, "held" if held else "silent", f"gradient off by {error:.1e}, loss by {off:.1e}"
                        )
    assert EXACT <= ERROR
    counted.verdict("the same rows in the same order, however split", len(orders) == 1, reason=str(orders))
    print({way: f"{error:.1e}" for way, error in worst.items()})


def order(data):
    """sha256 of the rows of each step as a set: what a step holds, whoever packs it."""
    steps = [sorted(origin for batch in data.step(number) for origin in batch.origins) for number in range(data.steps)]
    return hashlib.sha256(repr(steps).encode()).hexdigest()


@pytest.mark.torture
def test_the_peer_s_split_steps(peer, tally, tiny, tiny_folder, random_rows, tmp_path):
    """The same rows, models and splits on the peer, in the order that it draws and with the labels that it makes."""
    counted = tally("R9", "steps split 8x1, 4x2, 2x4, 1x8, a short one too: gradient within 1e-6 of float64, same rows", peer.name)  # fmt: skip
    for kind, fields in SHAPES.items():
        tiny(kind, initializer_range=0.05, **fields).model.save_pretrained(tmp_path / "models" / kind)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "tokenizer")
    sequences = [row.sequences[0] for row in random_rows(13)]
    rows = [{"input_ids": one.tokens.tolist(), "completion_mask": one.learn.astype(int).tolist()} for one in sequences]
    write_rows(tmp_path / "rows.jsonl", rows)
    script = Path(__file__).with_name("peer_splits.py")
    done = subprocess.run([str(peer.python), str(script), str(tmp_path)], env=peer.environment(), capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    came = json.loads((tmp_path / "came.json").read_text())
    for one in came:
        name = f"{one['model']} {one['adapter']} {one['split']}, step of {len(one['rows'])} rows"
        held = one["error"] <= ERROR and one["off"] <= ERROR
        reason = f"gradient off by {one['error']:.1e}, loss by {one['off']:.1e}"
        counted.note(name, "held" if held else "silent", reason)
    steps = [[one["rows"] for one in came if one["step"] == number] for number in (0, 1)]
    asked = [[one.tokens.tolist(), [int(token) if learn else -100 for token, learn in zip(one.tokens, one.learn, strict=True)]] for one in sequences]  # fmt: skip
    assert sorted(steps[0][0] + steps[1][0]) == sorted(asked)
    held = all(each == split[0] for split in steps for each in split)
    counted.verdict("the same rows in each step, however split", held, reason="other rows")


def test_a_reference_in_float64_sees_a_row_left_out(tiny, random_rows):
    """The comparison can fail: without one row, or with the mean of means instead of the mean over tokens, gradients are far off."""
    rows = random_rows(5)
    loaded = attached(tiny, "llama", {}, LoRA(rank=4))
    _, wanted = expected(tiny, "llama", {}, LoRA(rank=4), rows)
    _, less = taken(loaded, [Batch.of(rows[:4])])
    assert apart(less, wanted) > 0.05
    parts = [taken(loaded, [Batch.of([row])])[1] for row in rows]
    means = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
    assert apart(means, wanted) > 1e-3
