"""PPO against its formulas, written anew token by token over one padded answer at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tunesmith.base import ConfigError
from tunesmith.base.spec import validate
from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.base import ADVANTAGE, OLD, RETURN, START, VALUE, reward
from tunesmith.methods.objectives.ppo import PPO, advantages
from tunesmith.models.forward import padded_logps
from tunesmith.models.heads import attach_head, padded_seen
from tunesmith.stages.finetune import Finetune
from tunesmith.training.reference import with_token_logps, with_token_values

EARNED = ((1.0, 0.0, 0.25), (0.5, 0.5, 0.5), (0.0, 0.0, 2.0))


@pytest.fixture
def tuned(build):
    loaded = build("llama", spread=0.2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    attach_head(loaded)
    return loaded


def move(loaded, size):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in trainable(loaded.model).values():
            weight += size * torch.randn(weight.shape, generator=generator)


@pytest.fixture
def measured(tuned, random_rows):
    """Three prompts with three answers of unequal lengths each, as the model was before it moved."""
    rows = []
    for row, earned in zip(random_rows(3, answers=3), EARNED, strict=True):
        columns = {reward(number): value for number, value in enumerate(earned)}
        rows.append(type(row)(row.origin, row.sequences, columns))
    rows = with_token_logps(tuned, rows, START, 2)
    move(tuned, 0.1)
    return with_token_values(tuned, rows, (OLD, VALUE), 2)


def slow(paid, value, discount, trace):
    """Equation 16 of arXiv:1506.02438 as it stands: a double sum."""
    later = [*value, 0.0]
    surprise = [paid[place] + discount * later[place + 1] - value[place] for place in range(len(paid))]
    return [
        sum((discount * trace) ** (far - near) * surprise[far] for far in range(near, len(paid)))
        for near in range(len(paid))
    ]


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_are_those_of_the_double_sum(discount, trace):
    generator = np.random.default_rng(0)
    for length in (1, 2, 7, 30):
        paid, value = generator.normal(size=(2, length))
        found = advantages(paid, value, discount, trace)
        assert np.allclose(found, slow(paid, value, discount, trace), atol=1e-12)
        if (discount, trace) == (1.0, 1.0):  # what was earned from there on, less what was expected
            assert np.allclose(found, np.cumsum(paid[::-1])[::-1] - value)


@pytest.mark.parametrize("objective", [PPO(), PPO(beta=0.0), PPO(beta=0.3, discount=0.9, trace=0.5)], ids=repr)
def test_what_tokens_are_credited_with(measured, objective):
    raw, expected, plain = [], [], []
    for row in measured:
        for number, one in enumerate(row.sequences):
            columns = {name: one.columns[name].astype(float) for name in (OLD, START, VALUE)}
            paid = [-objective.beta * (old - start) for old, start in zip(columns[OLD], columns[START], strict=True)]
            paid[-1] += row.columns[reward(number)]
            found = slow(paid, columns[VALUE], objective.discount, objective.trace)
            raw.extend(found)
            plain.append(found)
            expected.append(np.array(found) + columns[VALUE])
    rows = objective.credited(measured)
    sequences = [one for row in rows for one in row.sequences]
    mean, spread = np.mean(raw), np.std(raw, ddof=1)
    for one, advantage, returns in zip(sequences, plain, expected, strict=True):
        assert np.allclose(one.columns[ADVANTAGE], (np.array(advantage) - mean) / spread, atol=1e-5)
        assert np.allclose(one.columns[RETURN], returns, atol=1e-5)
    joined = np.concatenate([one.columns[ADVANTAGE] for one in sequences])
    assert joined.mean() == pytest.approx(0, abs=1e-6)
    assert joined.std(ddof=1) == pytest.approx(1, abs=1e-5)


def test_a_step_of_one_token_is_whitened_to_nothing(measured):
    one = measured[0].sequences[0]
    single = replace(one, learn=one.learn & (np.arange(len(one)) == len(one) - 1), columns={n: v[-1:] for n, v in one.columns.items()})  # fmt: skip
    (row,) = PPO().credited([replace(measured[0], sequences=(single,))])
    assert row.sequences[0].columns[ADVANTAGE].tolist() == [0.0]


def written_anew(objective, loaded, rows):
    """Token by token: the clipped surrogate, and half the larger squared error of the value and the clipped value; the mean over tokens."""
    losses, clipped, value_clipped = [], 0, 0
    for row in rows:
        for one in row.sequences:
            logps, values = padded_seen(loaded, Batch.of([type(row)("x", (one,))]), True)
            columns = [torch.tensor(one.columns[name]) for name in (OLD, VALUE, ADVANTAGE, RETURN)]
            for logp, value, old, was, advantage, returns in zip(logps, values, *columns, strict=True):
                ratio = (logp - old).exp()
                held = min(max(ratio, 1 - objective.clip), 1 + objective.clip)
                policy = max(-ratio * advantage, -held * advantage)
                near = min(max(value, was - objective.value_clip), was + objective.value_clip)
                errors = (value - returns) ** 2, (near - returns) ** 2
                clipped += bool(-held * advantage > -ratio * advantage)
                value_clipped += bool(errors[1] > errors[0])
                losses.append(policy + objective.value_weight * 0.5 * max(errors))
    return torch.stack(losses).mean(), clipped, value_clipped


@pytest.mark.parametrize("settings", [{}, {"clip": 0.05, "value_clip": 0.02, "value_weight": 0.7, "beta": 0.3}], ids=["default", "narrow"])  # fmt: skip
def test_loss_and_gradient_are_those_of_the_formula(tuned, measured, settings):
    objective = PPO(**settings)
    rows = objective.credited(measured)
    move(tuned, 0.2)
    batches = [Batch.of(rows[:1]), Batch.of(rows[1:])]
    losses = [objective(tuned, batch) for batch in batches]
    found = sum(loss.total for loss in losses) / sum(map(objective.count, batches))
    found.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(tuned.model).items()}
    tuned.model.zero_grad()
    expected, clipped, value_clipped = written_anew(objective, tuned, rows)
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert sum(float(loss.stats["clipped"]) for loss in losses) == clipped > 0, (
        "nothing was clipped: the test says little"
    )
    assert sum(float(loss.stats["value_clipped"]) for loss in losses) == value_clipped
    assert value_clipped > 0 or not settings
    for name, weight in trainable(tuned.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_on_the_first_update_the_ratio_is_one(tuned, measured):
    """The gradient is that of advantage times log-probability, and of half the squared error of values."""
    objective = PPO()
    rows = objective.credited(measured)
    loss = objective(tuned, Batch.of(rows))
    assert float(loss.stats["clipped"]) == float(loss.stats["value_clipped"]) == 0
    loss.total.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(tuned.model).items()}
    tuned.model.zero_grad()
    for row in rows:
        for one in row.sequences:
            logps, values = padded_seen(tuned, Batch.of([type(row)("x", (one,))]), True)
            errors = (values - torch.tensor(one.columns[RETURN])).square()
            (-(torch.tensor(one.columns[ADVANTAGE]) * logps).sum() + 0.05 * errors.sum()).backward()
    for name, weight in trainable(tuned.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_a_value_that_moved_too_far_towards_its_return_teaches_nothing(tuned, measured):
    objective = PPO(value_weight=1.0)
    rows = [
        replace(row, sequences=tuple(
            replace(one, columns={**one.columns, ADVANTAGE: 0 * one.columns[OLD], RETURN: one.columns[VALUE] + 1, VALUE: one.columns[VALUE] - 0.5})
            for one in row.sequences))
        for row in measured
    ]  # fmt: skip
    objective(tuned, Batch.of(rows)).total.backward()  # now 0.5 above what it was, its return still 1 away
    assert all(weight.grad is None or not weight.grad.any() for weight in trainable(tuned.model).values())


def test_values_and_log_probabilities_are_measured_in_one_pass(tuned, measured):
    for row in measured:
        for one in row.sequences:
            batch = Batch.of([type(row)("x", (replace(one, columns={}),))])
            logps, values = padded_seen(tuned, batch, True)
            assert np.allclose(one.columns[OLD], logps.detach(), atol=1e-4)
            assert np.allclose(one.columns[VALUE], values.detach(), atol=1e-4)
            assert np.allclose(one.columns[OLD], padded_logps(tuned, batch).detach(), atol=1e-4)
            assert not np.allclose(one.columns[START], one.columns[OLD], atol=1e-3)


@pytest.mark.parametrize("optimizer", ["mezo", "hybrid"])
def test_optimizers_of_two_passes_are_refused(optimizer):
    paid = {"rewards": [{"grader": {"kind": "exact"}}]}
    with pytest.raises(ConfigError, match=r"take optimizer\.kind adamw"):
        validate(Finetune, {"objective": {"kind": "ppo"}, "optimizer": {"kind": optimizer}, "rollouts": paid}, "r.yaml")
