"""Losses of given answers, of a teacher's words and of rewards that TRL has too, held against TRL's own code.

The same random model, the same rows of unequal lengths, values and gradients in float32.
Where TRL means something else than the paper, the test says so and checks how the two are related.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trl
from beside_trl import assert_same, combined, ours, split, theirs, trainer, twin
from torch.nn.utils.rnn import pad_sequence

from tunesmith.data.batch import Batch
from tunesmith.methods.objectives.base import OLD, START, Teaching, reward
from tunesmith.methods.objectives.distill import Distill
from tunesmith.methods.objectives.grpo import GRPO
from tunesmith.methods.objectives.reinforce import Reinforce
from tunesmith.methods.objectives.rloo import RLOO
from tunesmith.methods.objectives.sft import SFT
from tunesmith.training.reference import with_teacher, with_token_logps

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")


# Given answers and a teacher's: SFTTrainer and the trainers of distillation


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sft(policy, random_rows, smoothing):
    from transformers.trainer_pt_utils import LabelSmoother
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows, model = random_rows(5), twin(policy)
    examples = [{"input_ids": row.sequences[0].tokens.tolist()} for row in rows]
    for example, row in zip(examples, rows, strict=True):
        example["labels"] = np.where(row.sequences[0].learn, row.sequences[0].tokens, -100).tolist()
    made = trainer(
        trl.SFTTrainer, model, args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=False),
        compute_loss_func=None, label_smoother=LabelSmoother(smoothing) if smoothing else None,
    )  # fmt: skip
    inputs = DataCollatorForLanguageModeling(pad_token_id=0)(examples)
    count = sum(row.supervised for row in rows)
    loss = made.compute_loss(model, inputs, num_items_in_batch=torch.tensor(count))
    assert_same(ours(SFT(label_smoothing=smoothing), policy, rows), theirs(loss, model))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top", [97, 5])
def test_distill(policy, start, random_rows, top, temperature):
    """TRL's forward divergence of whole distributions, and of the likeliest tokens with one event for the others; ours is T^2 of it, as in the paper."""
    from trl.experimental.server_distillation.server_distillation_trainer import _add_tail_bucket, _jsd_divergence
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    rows = with_teacher(start, random_rows(5), Teaching(None, top, temperature), 5, 97)
    model, teacher = twin(policy), twin(start)
    tokens = pad_sequence([torch.as_tensor(row.sequences[0].tokens).long() for row in rows], batch_first=True)
    learn = pad_sequence([torch.as_tensor(row.sequences[0].learn) for row in rows], batch_first=True)[:, 1:]
    hidden, theirs_hidden = (each.model(tokens).last_hidden_state[:, :-1] for each in (model, teacher))
    if top == 97:
        heads = model.lm_head.weight, teacher.lm_head.weight.detach()
        loss, *_ = _chunked_divergence_loss(hidden, theirs_hidden.detach(), *heads, learn, 0.0, temperature=temperature)
    else:
        warm, named = (
            (each / temperature).log_softmax(-1) for each in (model.lm_head(hidden), teacher.lm_head(theirs_hidden))
        )
        named = named[learn].detach().topk(top)
        mask = torch.ones_like(named.indices, dtype=torch.bool)
        (own, mask), (taught, _) = (
            _add_tail_bucket(each, mask) for each in (warm[learn].gather(1, named.indices), named.values)
        )
        loss = _jsd_divergence(own, taught, 0.0, mask).sum() / learn.sum()
    found = ours(Distill(weight=1.0, top=top, temperature=temperature), policy, rows)
    assert_same(found, combined((temperature**2, theirs(loss, model))))


# Rewards: GRPOTrainer and RLOOTrainer


@pytest.fixture
def rollouts(random_rows, policy, start, build):
    """Three prompts with four rewarded answers each, sampled by a model a little off the one that learns."""
    moved = build("llama", seed=3, vocab_size=97)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    paid = np.random.default_rng(1).normal(size=(3, 4))
    rows = [
        replace(row, columns={reward(number): float(value) for number, value in enumerate(earned)})
        for row, earned in zip(random_rows(3, answers=4), paid, strict=True)
    ]
    return with_token_logps(start, with_token_logps(moved, rows, OLD, 3), START, 3)


def completions(rows):
    """Rollouts as TRL takes them: prompts padded on the left, answers on the right."""
    sequences = [sequence for row in rows for sequence in row.sequences]
    prompts, answers = zip(*map(split, sequences), strict=True)
    tensor = lambda lists, side="right": pad_sequence(  # noqa: E731
        [torch.as_tensor(one) for one in lists], batch_first=True, padding_side=side
    )
    ones = lambda lists: [torch.ones(len(one), dtype=torch.long) for one in lists]  # noqa: E731
    return {
        "prompt_ids": tensor(prompts, "left"),
        "prompt_mask": tensor(ones(prompts), "left"),
        "completion_ids": tensor(answers),
        "completion_mask": tensor(ones(answers)),
        "old_per_token_logps": tensor([sequence.columns[OLD] for sequence in sequences]),
        "ref_per_token_logps": tensor([sequence.columns[START] for sequence in sequences]),
        "old_logps": torch.tensor([sequence.columns[OLD].sum() for sequence in sequences]),
        "num_items_in_batch": torch.tensor(sum(map(len, answers))),
    }


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("grpo", {"average": "answers"}), ("bnpo", {}), ("dapo", {"clip_high": 0.28}), ("dr_grpo", {"average": "constant", "length": 16, "scale": "none"})],
    ids=["grpo", "bnpo", "dapo", "dr_grpo"],
)  # fmt: skip
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo(policy, rollouts, kind, settings, beta):
    objective, model = GRPO(beta=beta, **settings), twin(policy)
    made = trainer(
        trl.GRPOTrainer, model, beta=beta, loss_type=kind, epsilon_low=objective.clip_low, epsilon_high=objective.clip_high,
        importance_sampling_level="token", top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1, max_completion_length=16,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
    )  # fmt: skip
    inputs = {**completions(rollouts), "advantages": objective.advantages(Batch.of(rollouts))}
    found = ours(objective, policy, rollouts)
    assert_same(found, theirs(made._compute_loss(model, inputs), model))
    clipped = float(objective(policy, Batch.of(rollouts)).stats["clipped"])
    assert clipped > 0  # else the test would say nothing of it


@pytest.mark.parametrize("objective", [RLOO(), Reinforce(baseline=0.3)], ids=lambda objective: objective.kind)
def test_whole_answers(policy, rollouts, objective):
    """TRL clips the ratio of each answer, ours does not: with a clip that none reaches they are the same."""
    model, batch = twin(policy), Batch.of(rollouts)
    made = trainer(trl.RLOOTrainer, model, epsilon_low=1.0, epsilon_high=1e6)
    earned = torch.stack([batch.columns[reward(number)] for number in range(4)], 1)
    inputs = {**completions(rollouts), "advantages": objective.advantages(earned).flatten()}
    assert_same(ours(objective, policy, rollouts), theirs(made._compute_loss(model, inputs), model))
