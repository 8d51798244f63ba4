"""What tests beside TRL share: its trainers are made without their constructors, which ask for data sets and folders, and given what their loss functions read."""

import copy
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from tunesmith.data.batch import Batch
from tunesmith.data.example import Sequence


def twin(loaded):
    """The same weights in a model that knows nothing of forests, with what TRL puts in place of the head."""
    from trl.trainer.utils import add_fused_lm_head

    config = copy.deepcopy(loaded.model.config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float()
    model.load_state_dict(loaded.model.state_dict())
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model.train()


def trainer(kind, model, **settings):
    """A trainer of TRL's with what its loss reads and nothing else."""
    from accelerate import Accelerator

    made = object.__new__(kind)
    common = {"precompute_ref_logps": True, "aux_loss_enabled": False, "_tp_size": 1, "_total_train_tokens": 0}
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    made.__dict__.update(model=model, accelerator=Accelerator(cpu=True), _metrics=metrics, **common, **settings)
    return made


def gradients(model):
    """By name; and none is left behind."""
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


def ours(objective, loaded, rows):
    """The mean that the loop minimises, and its gradients."""
    batch = Batch.of(rows)
    loss = objective(loaded, batch).total / objective.count(batch)
    loss.backward()
    return float(loss.detach()), gradients(loaded.model)


def theirs(loss, model):
    """The same of what TRL gave."""
    loss.backward()
    return float(loss.detach()), gradients(model)


def assert_same(found, expected):
    """Values to 1e-5, and each gradient to 1e-4 of its length."""
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def combined(*parts):
    """A sum of (weight, (value, gradients))."""
    names = parts[0][1][1].keys()
    value = sum(weight * one[0] for weight, one in parts)
    return value, {name: sum(weight * one[1][name] for weight, one in parts) for name in names}


def split(sequence):
    """Prompt and answer as lists."""
    first = int(np.argmax(sequence.learn))
    return sequence.tokens[:first].tolist(), sequence.tokens[first:].tolist()


def of_lengths(row, prompt=None, answer=None):
    """A row with prompt and answers cut."""
    cut = []
    for sequence in row.sequences:
        before, after = split(sequence)
        tokens = np.array([*before[:prompt], *after[:answer]], dtype=np.int32)
        cut.append(Sequence(tokens, np.arange(len(tokens)) >= len(before[:prompt])))
    return replace(row, sequences=tuple(cut))
