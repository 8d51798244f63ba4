import json

import pytest
import torch

import tunesmith
from tunesmith.base import ConfigError, Run
from tunesmith.base.files import read_json
from tunesmith.data.batch import Batch
from tunesmith.kernels.noise import reference
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.hybrid import FILE, Hybrid
from tunesmith.methods.optimizers.moves import MOVES, SEEDS
from tunesmith.methods.optimizers.sgd import SGD
from tunesmith.models.forward import token_logps
from tunesmith.training.batches import Dataset
from tunesmith.training.checkpoint import load_newest, restore, save
from tunesmith.training.loop import train


@pytest.fixture
def attached(build):
    def make(adapter, **fields):
        loaded = build("llama", spread=0.2, vocab_size=97, **fields)
        loaded.model.float()
        adapter.attach(loaded, 0)
        learnt = trainable(loaded.model)
        return loaded, learnt, {name: one for name, one in loaded.model.named_parameters() if name not in learnt}

    return make


def run(loaded, rows, optimizer, steps=4, first=0):
    data = Dataset(rows, 4, 4, steps / 2, 0)
    return list(
        train(loaded, SFT(), data.from_step(first), optimizer, lambda step: 1 / (step + 1), seed=0, first=first, clip=0)
    )


def copies(weights):
    return {name: weight.detach().clone() for name, weight in weights.items()}


def equal(found, expected):
    return all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    "adapter", [LoRA(rank=2), LoRA(rank=2, dropout=0.3), Prompt(tokens=3)], ids=["lora", "dropout", "prompt"]
)
def test_with_a_base_that_holds_still_it_is_gradient_descent_bit_for_bit(attached, random_rows, adapter):
    found = []
    for spec in (SGD(learning_rate=0.1, weight_decay=0.01), Hybrid(learning_rate=0.1, weight_decay=0.01, base_rate=0)):
        loaded, learnt, frozen = attached(adapter)
        before = copies(frozen)
        steps = run(loaded, random_rows(8), spec.over(learnt, frozen))
        assert equal(frozen, before)
        found.append((copies(learnt), [step.loss for step in steps]))
    assert equal(found[1][0], found[0][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "generic"])
def test_with_an_adapter_that_holds_still_it_is_one_sided_zeroth_order_descent(attached, random_rows, precision, fuse):
    loaded, learnt, frozen = attached(LoRA(rank=2))
    loaded.precision, loaded.fuse = precision, fuse
    batch, before = Batch.of(random_rows(4)), copies(frozen)
    token_logps(loaded, batch)  # a fused form holds copies or views of the weights from here on
    spec = Hybrid(learning_rate=0, base_rate=1e-2, epsilon=1e-2)
    optimizer = spec.over(learnt, frozen)
    list(train(loaded, SFT(), [[batch]], optimizer, lambda _: 1.0, seed=3))
    (seed,), (scale,) = (optimizer.state[next(iter(learnt.values()))][name].tolist() for name in (SEEDS, MOVES))
    moved, slope = copies(frozen), 0.0
    with torch.no_grad():
        losses = []
        for size in (1e-2, 0.0):
            place = 0
            for name, weight in frozen.items():
                z = reference(weight.numel(), seed, place, "normal").view_as(weight)
                weight.copy_(before[name] + size * z)
                place += weight.numel()
            losses.append(float(SFT()(loaded, batch).total) / batch.supervised)
        slope = (losses[0] - losses[1]) / 1e-2
    assert abs(scale) > 1e-5
    assert scale == pytest.approx(-1e-2 * slope, rel=0.02, abs=1e-6)
    place = 0
    for name, weight in before.items():
        z = reference(weight.numel(), seed, place, "normal").view_as(weight)
        torch.testing.assert_close(moved[name], weight + scale * z, atol=2e-6, rtol=1e-5)
        place += weight.numel()


def test_a_step_costs_one_forward_pass_more_and_no_backward_pass(attached, random_rows):
    loaded, learnt, frozen = attached(LoRA(rank=2))
    batch, passes, backwards = Batch.of(random_rows(4)), [], []
    loaded.fuse = False  # so that layers are called as modules
    loaded.model.model.layers[0].register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    next(iter(learnt.values())).register_hook(lambda _: backwards.append(1))
    list(train(loaded, SFT(), [[batch]] * 3, Hybrid().over(learnt, frozen), lambda _: 1.0, seed=0))
    assert passes == [False, True] * 3
    assert len(backwards) == 3


def test_its_estimate_points_along_the_gradient(attached, random_rows):
    loaded, learnt, frozen = attached(LoRA(rank=2), hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    batch = Batch.of(random_rows(4))
    for weight in frozen.values():
        weight.requires_grad_(True)
    loss = SFT()(loaded, batch).total / batch.supervised
    gradient = torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(frozen.values()))])
    for weight in frozen.values():
        weight.requires_grad_(False)
    spec = Hybrid(learning_rate=0, base_rate=1e-12, epsilon=1e-4)
    optimizer, estimate = spec.over(learnt, frozen), torch.zeros_like(gradient)
    count = len(gradient) // 2
    for number in range(count):
        torch.manual_seed(number)
        optimizer.step(lambda: SFT()(loaded, batch).total / batch.supervised)
    for seed, scale in zip(*(one.tolist() for one in optimizer.moves), strict=True):
        estimate += -scale / 1e-12 / count * reference(len(gradient), seed, 0, "normal")
    assert (
        torch.nn.functional.cosine_similarity(estimate, gradient, 0) > 0.5
    )  # sqrt(n / (n + d + 1)) is expected of n directions in d dimensions: 0.58


def test_a_run_that_was_cut_ends_with_the_same_bits(attached, random_rows, tmp_path):
    found, spec = [], Hybrid(learning_rate=0.1, base_rate=1e-2)
    for cut in (False, True):
        loaded, learnt, frozen = attached(LoRA(rank=2))
        began, optimizer = copies(frozen), spec.over(learnt, frozen)
        run(loaded, random_rows(8), optimizer, steps=2 if cut else 4)
        if cut:
            save(tmp_path, 2, learnt, optimizer, {})
            with torch.no_grad():
                for name, weight in frozen.items():
                    weight.copy_(began[name])
                for weight in learnt.values():
                    weight.zero_()
            optimizer = spec.over(learnt, frozen)
            restore(load_newest(tmp_path, print), learnt, optimizer)
            run(loaded, random_rows(8), optimizer, first=2)
        assert not equal(frozen, began)
        found.append({**copies(learnt), **copies(frozen)})
    assert equal(*found)


def test_a_run_serves_the_base_that_it_moved(tiny_folder, tmp_path):
    lines = [{"prompt": f"Say {n}.", "completion": "yes" if n % 2 else "no"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 4, "cleaners": []},
        "finetune": {
            "epochs": 3,
            "batch": 8,
            "clip": 0,
            "optimizer": {"kind": "hybrid", "learning_rate": 0.5, "base_rate": 0.002},
            "validation": {"every": 1},
        },
        "evaluate": {"graders": [{"kind": "exact"}], "max_tokens": 4, "gate": {"margin": None, "beat": []}},
        "deploy": {"ungated": True, "prompts": 4},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    tunesmith.run(path, folder=tmp_path / "run")
    folder = next((tmp_path / "run").glob(f"**/adapter/{FILE}"))
    assert folder.stat().st_size < 2000
    events = list(Run(tmp_path / "run").events.read("validation"))
    assert len(events) > 3
    proof = read_json(next(one for one in (tmp_path / "run").glob("**/proof.json") if "stored" in one.read_text()))
    assert all(claim["holds"] for claim in proof["claims"])
    recipe["initialise"] = {"adapter": {"kind": "full"}}
    path.write_text(json.dumps(recipe))
    with pytest.raises(ConfigError, match="cannot move what the adapter full leaves frozen"):
        tunesmith.finetune(path, folder=tmp_path / "run2")
