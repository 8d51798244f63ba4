"""Estimates against what really happens: counts and multiplications exactly, memory within a tenth."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.kernels.nf4_linear import NF4Linear
from tunesmith.kernels.quantised_linear import QuantisedLinear, plain
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives.distill import Distill
from tunesmith.methods.objectives.dpo import DPO
from tunesmith.methods.objectives.mrpo import MRPO
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models import attention
from tunesmith.models.load import Loaded
from tunesmith.models.quantize import quantise
from tunesmith.models.skeleton import skeleton
from tunesmith.stages.dry_run import rehearse, storages
from tunesmith.stages.estimate import Estimate, Passes, estimate
from tunesmith.stages.finetune import Finetune
from tunesmith.stages.machine import Speed
from tunesmith.training.batches import Dataset
from tunesmith.training.rollouts import Rollouts

TINY = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "qwen3": Qwen3Config(**TINY),
    "gemma3": Gemma3TextConfig(**TINY, sliding_window=16),
    "mistral": MistralConfig(**TINY),
}
DEEP = LlamaConfig(**{**TINY, "num_hidden_layers": 12})
"""Deep enough that what a pass keeps outweighs what a single layer needs for a moment."""
SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0,
)  # fmt: skip
RESIDENT = 400 << 20
SPEED = Speed(fp32=1e11, bf16=2e11, bandwidth=1e10, operation=1e-6)


def rows_of(count: int, length: int = 24, shared: int = 8, learnt: int = 4) -> list[Row]:
    random = np.random.default_rng(0)
    prefix, rows = random.integers(3, 380, shared), []
    for number in range(count):
        tokens = np.concatenate([prefix, random.integers(3, 380, length - shared)]).astype(np.int32)
        rows.append(Row(f"rows:{number}", (Sequence(tokens, np.arange(length) >= length - learnt),)))
    return rows


def estimated(
    config, adapter, rows=None, *, precision="fp32", batch=4, micro_batch=4, epochs=1.0, available=1 << 40, **more
) -> Estimate:
    data = Dataset(rows or rows_of(8), batch, micro_batch, epochs, 0)
    machine = {"speed": SPEED, "available": available, "resident": RESIDENT}
    return estimate(config, adapter, AdamW(), SFT(), data, precision=precision, **machine, **more)


def real(config, adapter) -> Loaded:
    attention.register()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME).train()
    return attach(Loaded("tiny", None, model, None, "fp32"), adapter)


def attach(loaded, adapter) -> Loaded:
    adapter.attach(loaded, 0)
    return loaded


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_real_model(name):
    plain = AutoModelForCausalLM.from_config(CONFIGS[name])
    for adapter in (LoRA(rank=4), Full()):
        found = estimated(CONFIGS[name], adapter)
        assert found.parameters == sum(parameter.numel() for parameter in plain.parameters())
        assert found.learning == sum(p.numel() for p in trainable(real(CONFIGS[name], adapter).model).values())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("adapter", [LoRA(rank=4), Full()], ids=lambda adapter: adapter.kind)
def test_multiplications_are_those_of_a_real_step(name, adapter):
    batch, loaded = Batch.of(rows_of(4)), real(CONFIGS[name], adapter)
    with FlopCounterMode(display=False) as counter:
        SFT()(loaded, batch).total.backward()
    dry = attach(Loaded("tiny", None, skeleton(CONFIGS[name], "fp32"), None, "fp32"), adapter)
    assert rehearse(dry, SFT(), batch).flops == counter.get_total_flops()


def test_what_autograd_keeps_is_counted_to_the_byte():
    batch, loaded = Batch.of(rows_of(4)), real(DEEP, LoRA(rank=4))
    weights = {tensor.untyped_storage().data_ptr() for tensor in loaded.decoder().held()}
    weights |= {tensor.untyped_storage().data_ptr() for tensor in loaded.model.state_dict().values()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor):
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = SFT()(loaded, batch).total
    saved = sum(size for size, _ in kept.values())
    del total
    dry = attach(Loaded("tiny", None, skeleton(DEEP, "fp32"), None, "fp32"), LoRA(rank=4))
    found = rehearse(dry, SFT(), batch).bytes
    assert saved <= found <= 1.35 * saved  # beside what is kept there are temporary tensors


def test_smollm2_with_lora_in_bf16():
    found = estimated(SMOLLM2, LoRA(), precision="bf16", batch=2, micro_batch=2)
    assert found.parameters == 134_515_008
    assert found.learning == 4_884_480
    assert found.state == 8 * 4_884_480
    assert found.learnt >= 4 * 4_884_480
    # weights in bf16; copies of A, and of B in blocks down the diagonal of a joint weight, of which the rest is zero
    assert 2 * 134_515_008 <= found.weights <= 2 * (134_515_008 + 1.5 * 4_884_480)


def test_full_keeps_weights_and_gradients_and_moments_in_float32():
    found = estimated(CONFIGS["llama"], Full(), batch=4, micro_batch=1)
    assert found.learnt == 8 * found.parameters
    assert found.state == 8 * found.parameters


def test_a_shared_prefix_is_computed_once():
    rows = rows_of(8, length=40, shared=30)
    found = estimated(CONFIGS["llama"], LoRA(), rows, batch=4, micro_batch=4, epochs=2)
    assert (found.steps, found.tokens) == (4, 2 * 8 * 40)
    assert found.distinct_tokens == 2 * 2 * (30 + 4 * 10)
    assert estimated(CONFIGS["llama"], LoRA(), rows, micro_batch=1, epochs=2).distinct_tokens == found.tokens


@settings(max_examples=5)
@given(micro_batch=st.sampled_from([1, 2, 4]), rank=st.integers(1, 8), length=st.integers(12, 40))
def test_memory_falls_with_micro_batch_and_time_grows_with_epochs(micro_batch, rank, length):
    rows = rows_of(8, length)
    small, long, large = (
        estimated(CONFIGS["llama"], LoRA(rank=rank), rows, batch=8, micro_batch=size, epochs=epochs)
        for size, epochs in ((micro_batch, 1.0), (micro_batch, 3.0), (8, 1.0))
    )
    assert small.activations < large.activations
    assert long.seconds == pytest.approx(3 * small.seconds)
    parts = small.weights + small.learnt + small.state + small.activations + small.logits
    assert small.peak_bytes == parts + small.overhead + RESIDENT


def test_fits_is_decided_by_the_peak():
    found = estimated(CONFIGS["llama"], LoRA(), available=1 << 20)
    assert not found.fits
    assert estimated(CONFIGS["llama"], LoRA()).fits


def test_passes_of_an_optimizer_are_seen_not_declared():
    before = torch.get_rng_state()
    assert Passes.of(AdamW()) == Passes(with_gradient=1, without=0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_pass_without_gradients_keeps_no_activations():
    batch = Batch.of(rows_of(4))
    forward, both = (
        rehearse(
            attach(Loaded("tiny", None, skeleton(DEEP, "fp32"), None, "fp32"), LoRA()),
            SFT(),
            batch,
            gradients=g,
        )
        for g in (False, True)
    )
    assert forward.bytes < both.bytes / 3
    assert forward.flops < both.flops / 1.5
    assert forward.gradients == 0


def test_an_architecture_that_cannot_be_rehearsed_is_refused_in_one_line():
    config = Qwen3MoeConfig(
        **TINY, num_experts=4, moe_intermediate_size=32
    )  # asks for more experts of a token than there are
    with pytest.raises(ModelError, match=r"'qwen3_moe': its step cannot be planned"):
        estimated(config, LoRA())


MEASURE = """
import json, sys
from test_estimate import rows_of
from tunesmith.kernels.memory import Peak
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.objectives.distill import Distill
from tunesmith.methods.objectives.dpo import DPO
from tunesmith.methods.objectives.mrpo import MRPO
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.load import load, load_config, load_tokenizer, locate
from tunesmith.models.skeleton import skeleton
from tunesmith.stages.machine import measure_speed, resident_memory
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train
kind, precision, checkpointing, batch, micro_batch, length = json.loads(sys.argv[1])
load_tokenizer("smollm2-135m"), skeleton(load_config(locate("smollm2-135m")), precision), measure_speed(576, 1536)
resident = resident_memory()
loaded = load("smollm2-135m", precision)
loaded.checkpointing = checkpointing
Adapter.member(kind)().attach(loaded, 0)
peak, optimizer = Peak(), AdamW().build(trainable(loaded.model))
data = Dataset(rows_of(4 * batch, length, 40, 20), batch, micro_batch, 1, 0)
list(train(loaded, SFT(), data.from_step(0), optimizer, lambda step: 1.0, seed=0))
print(json.dumps([resident, peak.megabytes << 20]))
"""
POINTS = [
    ("lora", "bf16", False, 2, 2, 210),
    ("lora", "bf16", False, 8, 4, 210),
    ("lora", "bf16", False, 8, 8, 120),
    ("lora", "bf16", False, 4, 4, 800),
    ("lora", "bf16", True, 8, 8, 300),
    ("lora", "fp32", False, 8, 8, 210),
    ("full", "bf16", False, 4, 4, 210),
    ("lora", "nf4", False, 4, 4, 210),
    ("lora", "nf4", True, 8, 8, 300),
]


@pytest.mark.torture
@pytest.mark.parametrize("point", POINTS, ids=lambda point: " ".join(map(str, point)))
def test_memory_is_within_a_tenth_of_what_four_steps_take(point, request):
    kind, precision, checkpointing, batch, micro_batch, length = point
    command = [sys.executable, "-c", MEASURE, json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=request.path.parent)
    resident, measured = json.loads(done.stdout.splitlines()[-1])
    found = estimate(
        SMOLLM2, Adapter.member(kind)(), AdamW(), SFT(), Dataset(rows_of(4 * batch, length, 40, 20), batch, micro_batch, 1, 0),
        precision=precision, speed=SPEED, available=1 << 40, resident=resident, checkpointing=checkpointing,
    ).peak_bytes  # fmt: skip
    print(f"{point}: measured {measured:,}, estimated {found:,} ({found / measured - 1:+.1%})")
    assert 0.9 * measured < found < 1.1 * measured


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
    data, machine = Dataset(pairs, 2, 2, 1, 0), {"speed": SPEED, "available": 1 << 40, "resident": RESIDENT}
    found, plain = (
        estimate(CONFIGS["llama"], LoRA(), AdamW(), Objective.member(kind)(), data, precision="fp32", **machine)
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
        data = tune.dataset(rows_of(8), 0)
        machine = {"speed": SPEED, "available": 1 << 40, "resident": RESIDENT}
        return estimate(CONFIGS["llama"], LoRA(), AdamW(), tune.objective, data, precision="fp32", **machine)

    found, longer, twice = planned(), planned(max_tokens=32), planned(updates=2)
    assert (found.steps, twice.steps) == (2, 4)
    assert found.tokens == 8 * 4 * (20 + 16)
    assert twice.tokens == 2 * found.tokens
    weights = 4 * found.parameters / SPEED.bandwidth + SPEED.operation
    assert longer.seconds - found.seconds > 16 * 2 * weights
    assert longer.activations > found.activations
    assert found.seconds < twice.seconds < 2 * found.seconds


@pytest.mark.parametrize(
    ("precision", "adapter"), [("bf16", LoRA()), ("int8", LoRA()), ("nf4", LoRA()), ("int8", DoRA()), ("nf4", DoRA())]
)
def test_a_base_in_few_bits_is_planned_with_the_plain_numbers_that_sampling_makes_of_it(precision, adapter):
    """Of what learns with a factor, and in four bits of rows that end within a block; other bits are read as they are."""
    spec = Rollouts(rewards=({"grader": {"kind": "exact"}},), samples=4, max_tokens=16)
    tune = Finetune(objective={"kind": "grpo"}, rollouts=spec, batch=4, epochs=1.0)
    machine = {"precision": precision, "speed": SPEED, "available": 1 << 40, "resident": RESIDENT}
    sampled, given = (
        estimate(CONFIGS["llama"], adapter, AdamW(), objective, data, **machine)
        for objective, data in (
            (tune.objective, tune.dataset(rows_of(8), 0)),
            (SFT(), Dataset(rows_of(8), 4, 4, 1, 0)),
        )
    )
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
        estimate(
            config, LoRA(), AdamW(), each, Dataset(rows, 2, 2, 1, 0), precision="fp32", speed=Speed(1e9, 1e9, 1e9, 0.0),
            available=2**40, resident=0,
        )
        for each in (objective, plain)
    )  # fmt: skip
    assert found.peak_bytes >= without.peak_bytes
    assert found.seconds > without.seconds
