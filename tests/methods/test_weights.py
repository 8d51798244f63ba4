"""Adapters that let some of the model's own weights learn: which, and that the others keep every bit."""

import pytest
import torch

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.bitfit import BitFit
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.half import Half
from tunesmith.methods.adapters.layers import Layers
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train

VOCABULARY = 97
ADAPTERS = [Half(), Layers(last=1), Layers(last=0, names=("*.mlp.up_proj.*",)), BitFit()]


@pytest.fixture
def fresh(build):
    return lambda kind="llama", **fields: build(
        kind, seed=3, **{"vocab_size": VOCABULARY, "num_hidden_layers": 4, **fields}
    )


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda one: one.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "generic"])
def test_what_does_not_learn_keeps_every_bit(fresh, random_rows, adapter, dtype, fuse):
    """Under weight decay and momentum, which would move a weight that only has no gradient."""
    loaded = fresh(dtype=dtype)
    loaded.fuse = fuse
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    adapter.attach(loaded, 1)
    learning = trainable(loaded.model)
    optimizer = AdamW(learning_rate=1e-2, weight_decay=0.1).build(learning)
    steps = list(
        train(loaded, SFT(), Dataset(random_rows(8), 4, 4, 3, 0).from_step(0), optimizer, lambda _: 1.0, seed=0)
    )
    assert len(steps) == 6
    for name, weight in loaded.model.named_parameters():
        assert torch.equal(weight.to(dtype), before[name]) != (name in learning), name


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda one: one.kind)
def test_its_gradients_are_those_of_full_fine_tuning(fresh, random_rows, adapter):
    batch, found = Batch.of(random_rows(4)), []
    for each in (adapter, Full()):
        loaded = fresh()
        each.attach(loaded, 1)
        SFT()(loaded, batch).total.backward()
        found.append({name: weight.grad for name, weight in trainable(loaded.model).items()})
    own, full = found
    for name, gradient in own.items():
        assert (gradient - full[name]).norm() <= 1e-5 * full[name].norm() + 1e-7, name


def test_half_of_every_kind_learns(fresh):
    loaded, layers = fresh(), 4
    names = Half().chosen(loaded.model, 5)
    inside = {name for name in names if ".layers." in name}
    assert {name for name, _ in loaded.model.named_parameters() if ".layers." not in name} <= names
    for layer in range(layers):
        here = [name for name in inside if f".layers.{layer}." in name]
        assert sum("self_attn" in name for name in here) == 2
        assert sum("norm" in name for name in here) == 1
        assert sum("mlp" in name for name in here) in (1, 2)
    assert sum("mlp" in name for name in inside) == layers * 3 / 2
    assert names == Half().chosen(loaded.model, 5)
    assert names != Half().chosen(loaded.model, 6)
    assert names != Half(round=1).chosen(loaded.model, 5)


@pytest.mark.parametrize("kind", ["gemma2", "phi3", "qwen3", "gpt_neox"])
def test_half_knows_other_architectures(fresh, kind):
    model = fresh(kind).model
    names = Half().chosen(model, 0)
    inside = {name for name, _ in model.named_parameters() if ".layers." in name}
    matrices = {name for name in inside if "norm" not in name and name.endswith("weight")}
    assert len(names & matrices) == len(matrices) / 2


def test_the_last_layers_learn_with_the_norm_behind_them(fresh):
    model = fresh().model
    assert {name.split(".")[2] for name in Layers(last=2).chosen(model, 0) if ".layers." in name} == {"2", "3"}
    assert "model.norm.weight" in Layers(last=2).chosen(model, 0)
    assert Layers(last=0, names=("lm_head.weight",)).chosen(model, 0) == {"lm_head.weight"}


def test_what_is_not_there_is_refused(fresh):
    with pytest.raises(ModelError, match="this model has 4 layers, not 9"):
        Layers(last=9).chosen(fresh().model, 0)
    with pytest.raises(ModelError, match=r"no parameter is called '\*\.nope'; the first is lm_head"):
        Layers(names=("*.nope",)).chosen(fresh().model, 0)
    with pytest.raises(ModelError, match="nothing would learn"):
        BitFit(norms=False).attach(fresh(), 0)


def test_biases_are_found_where_there_are_some(fresh):
    names = BitFit(norms=False).chosen(fresh("qwen2").model, 0)
    assert {name.rsplit(".", 2)[-2] for name in names} == {"q_proj", "k_proj", "v_proj"}
