"""Optimizers that torch has not, and rates by name, beside what their papers and peft say."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.methods.optimizers.lion import Lion


def test_lion_is_algorithm_2_of_its_paper():
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
    spec = Lion(learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.99))
    optimizer = spec.build({"layer.weight": weight, "layer.bias": bias})
    expected = {one: one.detach().clone() for one in (weight, bias)}
    momentum = {one: torch.zeros_like(one) for one in expected}
    for _ in range(5):
        for one in (weight, bias):
            gradient = torch.randn(one.shape)
            one.grad = gradient.clone()
            direction = torch.sign(0.9 * momentum[one] + 0.1 * gradient)
            decay = 0.5 if one is weight else 0.0
            expected[one] = expected[one] - 0.1 * (direction + decay * expected[one])
            momentum[one] = 0.99 * momentum[one] + 0.01 * gradient
        optimizer.step()
    for one, value in expected.items():
        torch.testing.assert_close(one.detach(), value, atol=1e-6, rtol=1e-6)


def test_rates_by_name_are_lora_plus_as_peft_has_it(build):
    loaded = build("llama", seed=3, vocab_size=97)
    LoRA(rank=4, alpha=6).attach(loaded, 0)
    learnt = trainable(loaded.model)
    groups = AdamW(learning_rate=0.01, rates={"*.lora_B": 8}).build(learnt).param_groups
    ours = {id(one): group["lr"] for group in groups for one in group["params"]}
    theirs = get_peft_model(
        build("llama", seed=3, vocab_size=97).model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    made = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=8)
    named = {id(one): name for name, one in theirs.named_parameters()}
    expected = {named[id(one)]: group["lr"] for group in made.param_groups for one in group["params"]}
    assert len(expected) == len(learnt) > 0
    for name, one in learnt.items():
        assert ours[id(one)] == pytest.approx(expected[f"base_model.model.{name}.default.weight"]), name
    assert set(ours.values()) == {0.01, 0.08}
