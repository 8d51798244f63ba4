import pytest
import torch

from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.base import OLD, START, reward
from tunesmith.methods.objectives.grpo import GRPO
from tunesmith.models.forward import padded_logps
from tunesmith.training.reference import with_token_logps

EARNED = ((1.0, 0.0, 0.25), (0.5, 0.5, 0.5), (0.0, 0.0, 2.0))


@pytest.fixture
def tuned(build):
    loaded = build("llama", spread=0.2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    return loaded


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
    move(tuned, 0.4)
    return rows


def move(loaded, size):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in trainable(loaded.model).values():
            weight += size * torch.randn(weight.shape, generator=generator)


def written_anew(objective, loaded, rows):
    """Equation 3 of the paper token by token, over one padded answer at a time; the mean over what `average` says."""
    answers, tokens = [], 0
    for row in rows:
        earned = torch.tensor(list(row.columns.values()))
        for number, sequence in enumerate(row.sequences):
            advantage = earned[number] - earned.mean()
            if objective.scale == "group":
                advantage = advantage / (earned.std() + 1e-4)
            logps = padded_logps(loaded, Batch.of([type(row)("x", (sequence,))]))
            losses = []
            for logp, old, start in zip(logps, sequence.columns[OLD], sequence.columns[START], strict=True):
                ratio = (logp - old).exp()
                clipped = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
                gone = torch.tensor(start) - logp
                losses.append(-min(ratio * advantage, clipped * advantage) + objective.beta * (gone.exp() - gone - 1))
            tokens += len(losses)
            answers.append(torch.stack(losses))
    if objective.average == "tokens":
        return torch.cat(answers).sum() / tokens
    if objective.average == "answers":
        return torch.stack([answer.mean() for answer in answers]).mean()
    return torch.stack([answer.sum() / objective.length for answer in answers]).mean()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.04, "average": "answers"},
        {"clip_low": 0.05, "clip_high": 0.3, "beta": 0.2},
        {"average": "constant", "length": 12, "scale": "none"},
    ],
    ids=["default", "paper", "dapo", "dr_grpo"],
)
def test_loss_and_gradient_are_those_of_the_formula(tuned, groups, settings):
    objective = GRPO(**settings)
    batches = [Batch.of(groups[:1]), Batch.of(groups[1:])]
    count = sum(map(objective.count, batches))
    losses = [objective(tuned, batch) for batch in batches]
    found = sum(loss.total for loss in losses) / count
    found.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(tuned.model).items()}
    tuned.model.zero_grad()
    expected = written_anew(objective, tuned, groups)
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    assert sum(float(loss.stats["clipped"]) for loss in losses) > 0, "nothing was clipped: the test says little"
    assert sum(weight.abs().sum() for weight in gradient.values()) > 0
    for name, weight in trainable(tuned.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_without_an_old_policy_it_is_the_policy_gradient(tuned, random_rows):
    """Where answers come from the model as it is, the gradient is that of advantage times log-probability."""
    rows = [type(row)(row.origin, row.sequences, {reward(0): 1.0, reward(1): 0.0}) for row in random_rows(2, answers=2)]
    objective, batch = GRPO(scale="none"), Batch.of(rows)
    objective(tuned, batch).total.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(tuned.model).items()}
    tuned.model.zero_grad()
    sums_S = batch.per_sequence(padded_logps(tuned, batch))
    (-(sums_S * torch.tensor([0.5, -0.5, 0.5, -0.5]))).sum().backward()
    for name, weight in trainable(tuned.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-7, name


def test_a_group_that_earns_alike_teaches_nothing(tuned, random_rows):
    rows = [type(row)(row.origin, row.sequences, {reward(0): 0.7, reward(1): 0.7}) for row in random_rows(2, answers=2)]
    GRPO()(tuned, Batch.of(rows)).total.backward()
    assert all(not weight.grad.any() for weight in trainable(tuned.model).values())


@pytest.mark.parametrize("settings", [{"average": "constant"}, {"length": 3}])
def test_the_constant_belongs_to_its_average(settings):
    with pytest.raises(ValueError, match="length belongs to average: constant"):
        GRPO(**settings)
