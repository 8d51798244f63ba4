"""The reward model's loss held against TRL's RewardTrainer: the same model and head, pairs of unequal lengths, values and gradients in float32."""

import copy
from types import SimpleNamespace

import pytest
import torch
from beside_trl import assert_same, ours, theirs, trainer
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from tunesmith.methods.objectives.reward import Reward
from tunesmith.models.heads import attach_head


@pytest.mark.parametrize("centering", [0.0, 0.01])
@pytest.mark.parametrize("margin", [None, 0.7])
def test_a_reward_model_is_trl_s(policy, random_rows, margin, centering):
    rows = random_rows(5, answers=2, **({} if margin is None else {"margin": margin}))
    assert len({len(sequence) for row in rows for sequence in row.sequences}) > 3  # or padding would not be tested
    head = attach_head(policy)
    with torch.no_grad():
        head.weight.normal_(0, 0.3)
    config = copy.deepcopy(policy.model.config)
    config.num_labels, config.pad_token_id = 1, 0
    twin = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").float().train()
    twin.model.load_state_dict(policy.model.model.state_dict())
    with torch.no_grad():
        twin.score.weight.copy_(head.weight.view_as(twin.score.weight))
    made = trainer(RewardTrainer, twin, args=SimpleNamespace(center_rewards_coefficient=centering or None))
    pairs = [[sequence.tokens.tolist() for sequence in row.sequences] for row in rows]
    told = [
        {"chosen_ids": chosen, "rejected_ids": rejected, **({} if margin is None else {"margin": margin})}
        for chosen, rejected in pairs
    ]
    expected = theirs(made.compute_loss(twin, DataCollatorForPreference(pad_token_id=0)(told)), twin)
    value, found = ours(Reward(centering=centering), policy, rows)
    assert "score.weight" in found
    assert_same((value, found), expected)
