"""Policy gradients over whole answers against their formulas, written anew over one padded answer at a time."""

import pytest
import torch

from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.base import OLD, START, reward
from tunesmith.methods.objectives.reinforce import Reinforce
from tunesmith.methods.objectives.rloo import RLOO
from tunesmith.models.forward import padded_logps
from tunesmith.training.reference import with_token_logps

EARNED = ((1.0, 0.0, 0.25), (0.5, 0.5, 0.5), (0.0, 0.0, 2.0))


@pytest.fixture
def tuned(build):
    loaded = build("llama", spread=0.2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    return loaded


def move(loaded, size):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in trainable(loaded.model).values():
            weight += size * torch.randn(weight.shape, generator=generator)


@pytest.fixture
def groups(tuned, random_rows):
    """Three prompts with three answers each, as the model was before it moved."""
    rows = []
    for row, earned in zip(random_rows(3, answers=3), EARNED, strict=True):
        columns = {reward(number): value for number, value in enumerate(earned)}
        rows.append(type(row)(row.origin, row.sequences, columns))
    rows = with_token_logps(tuned, rows, START, 2)
    move(tuned, 0.1)
    rows = with_token_logps(tuned, rows, OLD, 2)
    move(tuned, 0.02)
    return rows


def baseline(objective, earned, number):
    if objective.kind == "reinforce":
        return objective.baseline
    return sum(value for other, value in enumerate(earned) if other != number) / (len(earned) - 1)


@pytest.mark.parametrize("objective", [RLOO(), RLOO(beta=0.1), Reinforce(baseline=0.4), Reinforce(beta=0.05)], ids=repr)
def test_loss_and_gradient_are_those_of_the_formula(tuned, groups, objective):
    found = objective(tuned, Batch.of(groups)).total
    found.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(tuned.model).items()}
    tuned.model.zero_grad()
    expected = torch.zeros(())
    for row in groups:
        earned = [
            row.columns[reward(number)] - objective.beta * float((one.columns[OLD] - one.columns[START]).sum())
            for number, one in enumerate(row.sequences)
        ]
        for number, sequence in enumerate(row.sequences):
            logp = padded_logps(tuned, Batch.of([type(row)("x", (sequence,))])).sum()
            ratio = torch.exp(logp - float(sequence.columns[OLD].sum()))
            expected = expected - ratio * (earned[number] - baseline(objective, earned, number))
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    for name, weight in trainable(tuned.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_on_the_first_update_the_gradient_is_that_of_reinforce(tuned, groups):
    """Williams, 1992: the advantage times the gradient of the log-probability."""
    from dataclasses import replace

    rows = [replace(row, sequences=tuple(replace(one, columns={}) for one in row.sequences)) for row in groups]
    Reinforce(baseline=0.5)(tuned, Batch.of(rows)).total.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(tuned.model).items()}
    tuned.model.zero_grad()
    for row in rows:
        for number, sequence in enumerate(row.sequences):
            logp = padded_logps(tuned, Batch.of([type(row)("x", (sequence,))])).sum()
            (-(row.columns[reward(number)] - 0.5) * logp).backward()
    for name, weight in trainable(tuned.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name
