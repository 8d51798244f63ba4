"""Combinations that would learn nothing, or something else than they seem to, are refused before anything is loaded."""

from dataclasses import replace

import pytest
import torch

from tunesmith.base import ConfigError, DataError, ModelError
from tunesmith.base.spec import validate
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.bitfit import BitFit
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.ia3 import IA3
from tunesmith.methods.adapters.layers import Layers
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.methods.objectives.kto import KTO, LABEL
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.methods.optimizers.hybrid import Hybrid
from tunesmith.methods.optimizers.muon import Muon
from tunesmith.models.forward import needs_autocast
from tunesmith.models.generate import Sampling, generate
from tunesmith.stages.estimate import estimate
from tunesmith.stages.finetune import Finetune
from tunesmith.stages.machine import Speed
from tunesmith.stages.plan import alternatives
from tunesmith.stages.recipe import Recipe
from tunesmith.training.batches import Dataset

VOCABULARY = 97
PAID = {"rewards": [{"grader": {"kind": "exact"}}]}


@pytest.mark.parametrize("objective", ["grpo", "rloo", "reinforce"])
@pytest.mark.parametrize("optimizer", ["mezo", "hybrid"])
def test_rewards_have_no_slope_that_two_passes_could_see(objective, optimizer):
    tree = {"objective": {"kind": objective}, "optimizer": {"kind": optimizer}, "rollouts": PAID}
    with pytest.raises(ValueError, match=r"take optimizer\.kind adamw"):
        Finetune.model_validate(tree)


def test_focus_and_smoothing_contradict_each_other():
    for settings in (
        {"focus": 2.0, "label_smoothing": 0.1},
        {"focus": 2.0, "enough": 0.05},
        {"label_smoothing": 0.1, "enough": 0.05},
    ):
        with pytest.raises(ValueError, match="keep one"):
            SFT(**settings)


@pytest.mark.parametrize(
    ("member", "names"),
    [(KTO, ("wanted", "unwanted")), (Hybrid, ("learning_rate", "base_rate"))],
    ids=["kto", "hybrid"],
)
def test_one_of_two_may_be_nothing_and_not_both(member, names):
    for name in names:
        member(**{name: 0})
    with pytest.raises(ValueError, match=f"{names[0]} and {names[1]} are both 0, so nothing .*; raise one"):
        member(**dict.fromkeys(names, 0))


@pytest.mark.parametrize("adapter", [BitFit(), IA3(), Prompt()], ids=lambda adapter: adapter.kind)
def test_muon_without_a_matrix_is_refused_where_the_training_is_planned(adapter, build, random_rows):
    config = build("llama", vocab_size=VOCABULARY).model.config
    machine = {"precision": "fp32", "speed": Speed(1e12, 1e12, 1e10, 1e-6), "available": 2**40, "resident": 0}
    with pytest.raises(ConfigError, match=r"no matrix inside the layers learns.*take optimizer\.kind=adamw"):
        estimate(config, adapter, Muon(), SFT(), Dataset(random_rows(4), 2, 2, 1, 0), **machine)


def test_kto_judges_answers_not_prompts(random_rows):
    row = replace(random_rows(1)[0], columns={LABEL: 1.0})
    whole = replace(row.sequences[0], learn=row.sequences[0].learn | True)
    with pytest.raises(DataError, match=r"set prepare\.supervise=answers"):
        KTO().check([replace(row, sequences=(whole,))])


def test_a_prompt_is_not_learnt_on_top_of_a_prompt(build):
    loaded = build("llama", vocab_size=VOCABULARY)
    Prompt(tokens=3).attach(loaded, 0)
    for adapter in (Prompt(tokens=3), Full()):
        with pytest.raises(ModelError, match="tune its base instead"):
            adapter.attach(loaded, 0)


def test_a_learnt_prompt_has_room_in_generation(build):
    loaded = build("llama", vocab_size=VOCABULARY)
    Prompt(tokens=20).attach(loaded, 0)
    (answer,) = generate(loaded, [[5] * 60], Sampling(max_tokens=4))
    assert 1 <= len(answer.tokens) <= 4


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_a_learnt_prompt_is_no_weight_of_the_model(build, kind):
    """Kept in float32 as it is, beside a base in bf16 it asks for no casts."""
    loaded = build(kind, vocab_size=97, dtype=torch.bfloat16)
    Prompt(tokens=2).attach(loaded, 0)
    assert not needs_autocast(loaded)
    loaded.model.get_output_embeddings().float()
    assert needs_autocast(loaded)


def test_a_prompt_starts_as_the_model_sees_words(build):
    loaded = build("gemma3_text", vocab_size=VOCABULARY, sliding_window=6, query_pre_attn_scalar=8)
    embedding = loaded.model.get_input_embeddings()
    Prompt(tokens=4).attach(loaded, 0)
    prompt = loaded.model.get_input_embeddings().prompt.detach()
    every = embedding(torch.arange(VOCABULARY)).float().detach()
    assert all(bool((every == one).all(1).any()) for one in prompt)


def test_vectors_do_not_decay(build):
    loaded = build("llama", vocab_size=VOCABULARY)
    IA3().attach(loaded, 0)
    groups = AdamW(weight_decay=0.5).groups(trainable(loaded.model))
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_rates_fall_from_the_highest_layer_that_learns(build):
    loaded = build("llama", vocab_size=VOCABULARY, num_hidden_layers=3)
    Layers(last=0, names=("*.mlp.up_proj.weight",)).attach(loaded, 0)
    rates = [group["lr"] for group in AdamW(learning_rate=1.0, layer_decay=0.5).groups(trainable(loaded.model))]
    assert sorted(rates) == [0.25, 0.5, 1.0]
    Full().attach(loaded, 0)
    groups = AdamW(learning_rate=1.0, layer_decay=0.5).groups(trainable(loaded.model))
    assert {group["lr"] for group in groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}


@pytest.mark.parametrize(
    ("kind", "fields"), [("gpt2", {"n_embd": 16, "n_head": 4, "n_layer": 2}), ("bloom", {"n_head": 4})]
)
def test_the_norm_behind_the_last_layer_is_found_by_its_place(build, kind, fields):
    names = Layers(last=1).chosen(build(kind, vocab_size=VOCABULARY, n_positions=128, **fields).model, 0)
    outside = {name for name in names if ".h." not in name}
    assert outside == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert not any(".h.0." in name for name in names)


def test_alternatives_to_a_hybrid_are_recipes():
    tree = {"prepare": {"source": "x.jsonl"}, "finetune": {"optimizer": {"kind": "hybrid"}}}
    recipe = validate(Recipe, tree, "r.yaml")
    assert not any("kind=full" in each for settings in alternatives(recipe) for each in settings)
