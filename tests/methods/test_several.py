"""Several adapters share a base's memory, and each answers as if it were alone."""

import pytest
import torch

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.several import Several
from tunesmith.models.forward import generic_logps, padded_logps, token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.scheduler import Scheduler

VOCABULARY = 97
ADAPTERS = {
    "narrow": LoRA(rank=2, alpha=6, targets=("q_proj", "down_proj")),
    "wide": LoRA(rank=5, alpha=8, scaling="root"),
    "principal": LoRA(rank=4, alpha=4, start="principal"),
}
PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]


@pytest.fixture(params=["llama", "olmo2"])
def fresh(request, build):
    """The same random model each time; of the second there is no fused form."""
    return lambda **fields: build(request.param, seed=3, vocab_size=VOCABULARY, **fields)


def learnt(loaded, adapter, folder, seed):
    """An adapter's folder after something was learnt."""
    adapter.attach(loaded, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(loaded.model).values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    adapter.save(loaded, folder)
    return folder


@pytest.fixture
def folders(fresh, tmp_path):
    each = enumerate(ADAPTERS.items())
    return {name: learnt(fresh(), adapter, tmp_path / name, number) for number, (name, adapter) in each}


@pytest.fixture
def alone(fresh, folders):
    """Every adapter on a base of its own, and the base."""
    made = {"base": fresh()}
    for name, adapter in ADAPTERS.items():
        made[name] = fresh()
        adapter.restore(made[name], folders[name])
    return made


def answers(loaded):
    return [one.tokens for one in generate(loaded, PROMPTS, Sampling(max_tokens=8))]


@pytest.mark.parametrize("way", [token_logps, generic_logps, padded_logps])
def test_each_computes_what_it_computes_alone_whoever_was_before(fresh, folders, alone, random_rows, way):
    batch = Batch.of(random_rows(3))
    several = Several(fresh(), folders)
    assert list(several.models) == ["base", *ADAPTERS]
    with torch.no_grad():
        expected = {name: way(loaded, batch) for name, loaded in alone.items()}
        for name in ("wide", "narrow", "wide", "base", "principal", "base", "narrow"):
            torch.testing.assert_close(way(several.models[name], batch), expected[name], atol=2e-6, rtol=2e-6)
        assert torch.equal(way(several.models["base"], batch), expected["base"])
    spread = torch.stack(list(expected.values()))
    assert min((spread[i] - spread[j]).abs().max() for i in range(4) for j in range(i)) > 0.01


def test_answers_are_those_of_each_alone_also_where_steps_alternate(fresh, folders, alone):
    expected = {name: answers(loaded) for name, loaded in alone.items()}
    assert len({str(one) for one in expected.values()}) == 4
    several = Several(fresh(), folders)
    assert {name: answers(loaded) for name, loaded in several.models.items()} == expected
    schedulers = {name: Scheduler(loaded, 4, 2, 256, keep=True) for name, loaded in several.models.items()}
    found = {name: [[] for _ in PROMPTS] for name in schedulers}
    for scheduler in schedulers.values():
        for number, prompt in enumerate(PROMPTS):
            scheduler.add(number, prompt, Sampling(max_tokens=8))
    while not all(scheduler.idle for scheduler in schedulers.values()):
        for name, scheduler in schedulers.items():
            for piece in scheduler.step():
                found[name][piece.index].append(piece.token)
    assert found == expected


def test_the_base_is_in_memory_once(fresh, folders):
    loaded = fresh()
    before = sum(one.numel() for one in loaded.model.parameters())
    several = Several(loaded, folders)
    assert len({id(one.model) for one in several.models.values()}) == 1
    assert len({id(one.decoder()) for one in several.models.values()}) == 1
    added = sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in several.layers.values())
    assert sum(one.numel() for one in loaded.model.parameters()) == before + added


def test_what_cannot_share_a_base_is_refused(fresh, tmp_path):
    turned = learnt(fresh(), DoRA(rank=2), tmp_path / "turned", 0)
    plain = learnt(fresh(), LoRA(rank=2), tmp_path / "plain", 0)
    with pytest.raises(ModelError, match="adapter turned: adds more than low-rank corrections"):
        Several(fresh(), {"plain": plain, "turned": turned})
    with pytest.raises(ModelError, match="adapter base: has the base's name"):
        Several(fresh(), {"base": plain})
    with pytest.raises(ModelError, match=r"corrects model.layers.1.*which \w+ does not have"):
        Several(fresh(num_hidden_layers=1), {"plain": plain})
