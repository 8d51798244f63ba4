"""Every preference objective against its paper's formula, written anew over one padded answer at a time, on answers of unequal length."""

import math

import pytest
import torch

from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.cpo import CPO
from tunesmith.methods.objectives.dpo import DPO
from tunesmith.methods.objectives.ipo import IPO
from tunesmith.methods.objectives.orpo import ORPO
from tunesmith.methods.objectives.simpo import SimPO
from tunesmith.models.forward import padded_logps
from tunesmith.training.reference import with_references


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def dpo(policy, start, beta=0.3):
    """arXiv:2305.18290, eq. 7."""
    (w, r), (w0, r0) = policy, start
    return -torch.log(sigmoid(beta * (w.sum() - w0) - beta * (r.sum() - r0)))


def ipo(policy, start, tau=0.3):
    """arXiv:2310.12036, eq. 17."""
    (w, r), (w0, r0) = policy, start
    return ((w.sum() - w0) - (r.sum() - r0) - 1 / (2 * tau)) ** 2


def simpo(policy, _start, beta=2.5, gamma=0.7):
    """arXiv:2405.14734, eq. 6."""
    w, r = policy
    return -torch.log(sigmoid(beta / len(w) * w.sum() - beta / len(r) * r.sum() - gamma))


def orpo(policy, _start, weight=0.25):
    """arXiv:2403.07691, eq. 2 to 6: the likelihood of an answer is the geometric mean of its tokens'."""
    w, r = (torch.exp(one.sum() / len(one)) for one in policy)
    ratio = (w / (1 - w)) / (r / (1 - r))
    return -policy[0].sum() / len(policy[0]) - weight * torch.log(sigmoid(torch.log(ratio)))


def cpo(policy, _start, beta=0.3, weight=0.5):
    """arXiv:2401.08417, eq. 3 and 5, the second per token as its authors' code has it."""
    w, r = policy
    return -torch.log(sigmoid(beta * w.sum() - beta * r.sum())) - weight * w.sum() / len(w)


FORMULAS = [
    (DPO(beta=0.3), dpo),
    (IPO(beta=0.3), ipo),
    (SimPO(beta=2.5, gamma=0.7), simpo),
    (ORPO(weight=0.25), orpo),
    (CPO(beta=0.3, weight=0.5), cpo),
]


@pytest.fixture
def tuned(build):
    loaded = build("llama", spread=0.2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    return loaded


@pytest.fixture
def pairs(tuned, random_rows):
    found = with_references(tuned, random_rows(6, answers=2), 4)
    assert any(len(row.sequences[0]) != len(row.sequences[1]) for row in found)
    return found


@pytest.mark.parametrize(("objective", "formula"), FORMULAS, ids=lambda one: getattr(one, "kind", ""))
def test_loss_and_gradient_are_those_of_the_formula(tuned, pairs, objective, formula):
    with torch.no_grad():
        for name, weight in trainable(tuned.model).items():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    found = objective(tuned, Batch.of(pairs)).total
    found.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(tuned.model).items()}
    tuned.model.zero_grad()
    expected = torch.zeros(())
    for row in pairs:
        policy = [padded_logps(tuned, Batch.of([type(row)("x", (sequence,))])) for sequence in row.sequences]
        expected = expected + formula(policy, [row.columns[f"reference_{answer}"] for answer in range(2)])
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, weight in trainable(tuned.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_where_training_starts_dpo_is_log_two_and_ipo_its_margin_squared(tuned, pairs):
    batch = Batch.of(pairs)
    assert float(DPO()(tuned, batch).total.detach()) / len(pairs) == pytest.approx(math.log(2), abs=1e-6)
    assert float(IPO(beta=0.1)(tuned, batch).total.detach()) == pytest.approx(len(pairs) * 25, rel=1e-4)


def test_the_log_odds_of_an_answer_that_is_certain_are_finite():
    from tunesmith.methods.objectives.preference import Answers

    sure = torch.tensor([[0.0, -2.0]], requires_grad=True)
    score = ORPO().score(Answers(sure, torch.ones(1, 2), torch.zeros(1, 2)))
    score.sum().backward()
    assert score.isfinite().all()
    assert sure.grad.isfinite().all()
