"""Embeddings are told by their names, whatever an architecture calls them: they lie below the first layer, and are no hidden matrices."""

import pytest
import torch

from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.methods.optimizers.base import embeds
from tunesmith.methods.optimizers.muon import Muon

EMBEDDINGS = {
    "llama": {"model.embed_tokens.weight"},
    "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
    "gpt_neox": {"gpt_neox.embed_in.weight"},
}
OWN = {"gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_they_take_the_lowest_rate_and_no_orthogonal_steps(build, kind):
    loaded = build(kind, **OWN.get(kind, {}))
    Full().attach(loaded, 0)
    parameters = trainable(loaded.model)
    assert {name for name in parameters if embeds(name)} == EMBEDDINGS[kind]
    rates = {id(one): group["lr"] for group in AdamW(learning_rate=1.0, layer_decay=0.5).build(parameters).param_groups for one in group["params"]}  # fmt: skip
    for name in EMBEDDINGS[kind]:
        assert rates[id(parameters[name])] == min(rates.values()) == 0.5**3
    parts = Muon().build(parameters)
    (muon,) = [part for part in parts.parts if isinstance(part, torch.optim.Muon)]
    orthogonal = {id(one) for group in muon.param_groups for one in group["params"]}
    heads = {name for name in parameters if name.startswith(("lm_head", "embed_out"))}
    for name in EMBEDDINGS[kind] | heads:
        assert id(parameters[name]) not in orthogonal
