"""Estimates of what methods add to a step: bases in few bits, heads of reward models, answers that are sampled, and what other models will say."""

from dataclasses import replace

import pytest
import torch
from estimates import CONFIGS, SMOLLM2, SPEED, TINY, attach, estimated, rows_of
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.kernels.nf4_linear import NF4Linear
from tunesmith.kernels.quantised_linear import QuantisedLinear, plain
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives.distill import Distill
from tunesmith.methods.objectives.dpo import DPO
from tunesmith.methods.objectives.mrpo import MRPO
from tunesmith.methods.objectives.sft import SFT
from tunesmith.models.heads import attach_head
from tunesmith.models.load import Loaded
from tunesmith.models.quantize import quantise
from tunesmith.models.skeleton import skeleton
from tunesmith.stages.dry_run import storages
from tunesmith.stages.finetune import Finetune
from tunesmith.training.reference import Start
from tunesmith.training.rollouts import Rollouts


def test_a_base_in_int8_takes_half_the_memory_and_less_time():
    shallow = LlamaConfig(**{**SMOLLM2.to_dict(), "num_hidden_layers": 3})
    rows = rows_of(2, length=300)
    half, quarter = (
        estimated(shallow, LoRA(), rows, precision=precision, batch=2, micro_batch=2) for precision in ("bf16", "int8")
    )
    assert quarter.parameters == half.parameters
    assert quarter.learning == half.learning
    linear = 3 * (576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536)
    assert half.weights - quarter.weights == pytest.approx(linear, rel=0.01)
    assert quarter.seconds < 0.8 * half.seconds


def test_a_head_is_planned_with_what_learns_and_no_logits_with_a_reward_model():
    rows = rows_of(4)
    pairs = [replace(row, sequences=(*row.sequences, *row.sequences)) for row in rows]
    found, plain = (
        estimated(CONFIGS["llama"], LoRA(), pairs, objective=Objective.member(kind)(), batch=2, micro_batch=2)
        for kind in ("reward", "simpo")
    )
    assert found.learning == plain.learning + CONFIGS["llama"].hidden_size
    assert found.logits == 0
    assert found.seconds < plain.seconds


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "generic"])
def test_a_base_in_nf4_takes_what_its_tensors_take(kind, fused, monkeypatch):
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    config = type(CONFIGS[kind])(**{**TINY, **sizes})
    if not fused:
        monkeypatch.setattr(Loaded, "decoder", lambda self: None)
    half, four = (estimated(config, LoRA(), rows_of(4, 64), precision=precision) for precision in ("bf16", "nf4"))
    loaded = Loaded("tiny", None, AutoModelForCausalLM.from_config(config).train(), None, "nf4")
    quantise(loaded.model, "nf4", torch.bfloat16)
    attach(loaded, LoRA())
    own = sum(parameter.nbytes for parameter in trainable(loaded.model).values())
    assert four.weights == pytest.approx(sum(storage.nbytes() for storage in storages(loaded)) - own, rel=0.02)
    linear = sum(one.in_features * one.out_features for one in loaded.model.modules() if isinstance(one, NF4Linear))
    assert half.weights - four.weights == pytest.approx((2 - 0.516) * linear, rel=0.05)
    assert (four.parameters, four.learning) == (half.parameters, half.learning)
    widest = 2 * 384 * (128 + 32) * 2  # gate and up together, in bf16, made for one product
    assert 0 <= four.activations - half.activations <= widest * (1 if fused else 2)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_answers_that_are_sampled_cost_time_and_their_length(kind):
    def planned(samples=4, max_tokens=16, updates=1):
        spec = Rollouts(
            rewards=({"grader": {"kind": "exact"}},), samples=samples, max_tokens=max_tokens, updates=updates
        )
        tune = Finetune(objective={"kind": kind, "beta": 0.1}, rollouts=spec, batch=4, epochs=1.0)
        return estimated(CONFIGS["llama"], LoRA(), tune.dataset(rows_of(8), 0), objective=tune.objective)

    found, longer, twice = planned(), planned(max_tokens=32), planned(updates=2)
    assert (found.steps, twice.steps) == (2, 4)
    assert found.tokens == 8 * 4 * (20 + 16)
    assert twice.tokens == 2 * found.tokens
    weights = 4 * found.parameters / SPEED.bandwidth + SPEED.operation
    assert longer.seconds - found.seconds > 16 * 2 * weights
    assert longer.activations > found.activations
    assert found.seconds < twice.seconds < 2 * found.seconds


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
@pytest.mark.parametrize("adapter", [Full(), LoRA(), Prompt(tokens=3)], ids=lambda adapter: adapter.kind)
def test_answers_that_are_held_to_the_start_are_planned_with_a_copy_of_what_learns(kind, adapter):
    """The head of a value beside it; a model whose adapter can be left out is its start without."""
    spec = Rollouts(rewards=({"grader": {"kind": "exact"}},), samples=4, max_tokens=16)
    planned = {}
    for beta in (0.0, 0.1):
        tune = Finetune(objective={"kind": kind, "beta": beta}, rollouts=spec, batch=4, epochs=1.0)
        planned[beta] = estimated(
            CONFIGS["llama"], adapter, tune.dataset(rows_of(8), 0), objective=tune.objective, precision="bf16"
        )
    held, free = planned[0.1], planned[0.0]
    loaded = Loaded("plan", None, skeleton(CONFIGS["llama"], "bf16"), None, "bf16")
    attach(loaded, adapter)
    if kind == "ppo":
        attach_head(loaded)
    kept = Start(trainable(loaded.model)).kept.values() if adapter.neutral else ()
    assert held.weights - free.weights == sum(one.nbytes for one in kept)
    assert held.learning == free.learning


@pytest.mark.parametrize(
    ("precision", "adapter"), [("bf16", LoRA()), ("int8", LoRA()), ("nf4", LoRA()), ("int8", DoRA()), ("nf4", DoRA())]
)
def test_a_base_in_few_bits_is_planned_with_the_plain_numbers_that_sampling_makes_of_it(precision, adapter):
    """Of what learns with a factor, and in four bits of rows that end within a block; other bits are read as they are."""
    spec = Rollouts(rewards=({"grader": {"kind": "exact"}},), samples=4, max_tokens=16)
    tune = Finetune(objective={"kind": "grpo"}, rollouts=spec, batch=4, epochs=1.0)
    data = tune.dataset(rows_of(8), 0)
    sampled = estimated(CONFIGS["llama"], adapter, data, objective=tune.objective, precision=precision)
    given = estimated(CONFIGS["llama"], adapter, precision=precision)
    loaded = Loaded("plan", None, skeleton(CONFIGS["llama"], precision), None, precision)
    layers = [one for one in loaded.model.modules() if isinstance(one, QuantisedLinear)]
    unread = [one for one in layers if adapter.kind == "dora" or (precision == "nf4" and one.in_features % 64)]
    made = sum(plain(one).weight.nbytes for one in unread)
    assert (made > 0) == (adapter.kind == "dora" or precision == "nf4")
    assert sampled.weights - given.weights == made


@pytest.mark.parametrize(
    "objective", [MRPO(models=("a", "b")), Distill(top=3), Distill(teacher="a", top=3)], ids=lambda one: one.kind
)
def test_what_other_models_will_say_can_be_planned(objective, random_rows):
    """Before any of them was asked, and the passes that measure it are counted."""
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    rows = random_rows(4, answers=objective.answers)
    plain = DPO() if objective.answers == 2 else SFT()
    found, without = (
        estimated(config, LoRA(), rows, objective=each, batch=2, micro_batch=2) for each in (objective, plain)
    )
    assert found.peak_bytes >= without.peak_bytes
    assert found.seconds > without.seconds
