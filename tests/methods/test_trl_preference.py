"""Losses of preferences that TRL has too, held against TRL's own code.

The same random model, the same rows of unequal lengths, values and gradients in float32.
Where TRL means something else than the paper, the test says so and checks how the two are related.
"""

from dataclasses import replace

import pytest
import trl
from beside_trl import assert_same, combined, of_lengths, ours, split, theirs, trainer, twin

from tunesmith.methods.objectives.base import reference
from tunesmith.methods.objectives.cpo import CPO
from tunesmith.methods.objectives.dpo import DPO
from tunesmith.methods.objectives.ipo import IPO
from tunesmith.methods.objectives.kto import KTO, LABEL
from tunesmith.methods.objectives.orpo import ORPO
from tunesmith.methods.objectives.simpo import SimPO
from tunesmith.training.reference import with_references

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")


@pytest.fixture
def pairs(random_rows, start):
    """Five pairs of answers of three to eight tokens behind prompts of unequal lengths."""
    rows = random_rows(5, answers=2)
    assert len({len(sequence) for row in rows for sequence in row.sequences}) > 3  # or padding would not be tested
    return with_references(start, rows, 5)


# Preferences against a reference: DPOTrainer


def dpo_trainer(policy, rows, kind, beta, smoothing=0.0):
    """What DPOTrainer makes of the rows with one of its loss types."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    model = twin(policy)
    examples = []
    for row in rows:
        (prompt, chosen), (_, rejected) = map(split, row.sequences)
        given = {"ref_chosen_logps": row.columns[reference(0)], "ref_rejected_logps": row.columns[reference(1)]}
        examples.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, **given})
    inputs = DataCollatorForPreference(pad_token_id=0)(examples)
    made = trainer(
        trl.DPOTrainer, model, beta=beta, loss_types=[kind], loss_weights=[1.0], label_smoothing=smoothing, ld_alpha=None,
        f_divergence_type="reverse_kl", use_weighting=False,
    )  # fmt: skip
    return theirs(made.compute_loss(model, inputs), model)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo(policy, pairs, beta):
    assert_same(ours(DPO(beta=beta), policy, pairs), dpo_trainer(policy, pairs, "sigmoid", beta))


def test_dpo_with_label_smoothing(policy, pairs):
    """TRL 1.16 reads label smoothing e in its loss type `robust` alone, (1 - e) right - e wrong over 1 - 2 e; ours, the note's, adds the two. Together: 2 (1 - e) right."""
    smoothing = 0.2
    found = ours(DPO(beta=0.3, label_smoothing=smoothing), policy, pairs)
    right, robust = (dpo_trainer(policy, pairs, kind, 0.3, smoothing) for kind in ("sigmoid", "robust"))
    assert_same(found, combined((2 * (1 - smoothing), right), (2 * smoothing - 1, robust)))


@pytest.mark.parametrize("tokens", [1, 3])
def test_ipo(policy, start, random_rows, tokens):
    """TRL divides each answer's gain by its length, the paper does not: on answers of T tokens, TRL with beta is ours with beta / T, over T^2."""
    rows = with_references(start, [of_lengths(row, answer=tokens) for row in random_rows(5, answers=2)], 5)
    expected = dpo_trainer(policy, rows, "ipo", 0.4)
    assert_same(combined((tokens**-2, ours(IPO(beta=0.4 / tokens), policy, rows))), expected)


# Preferences without a reference: CPOTrainer and ORPOTrainer


def collated(rows):
    """Pairs as the experimental trainers take them."""
    from trl.experimental.utils import DPODataCollatorWithPadding

    examples = []
    for row in rows:
        example = {}
        for name, sequence in zip(("chosen", "rejected"), row.sequences, strict=True):
            prompt, answer = split(sequence)
            example[f"{name}_input_ids"] = prompt + answer
            example[f"{name}_attention_mask"] = [1] * len(sequence)
            example[f"{name}_labels"] = [-100] * len(prompt) + answer
        examples.append(example)
    return DPODataCollatorWithPadding(pad_token_id=0)(examples)


def cpo_trainer(policy, rows, kind, **settings):
    """What CPOTrainer makes of the rows."""
    from trl.experimental.cpo import CPOTrainer

    model = twin(policy)
    given = {"cpo_alpha": 0.0, "label_smoothing": 0.0, "alpha": 0.0, **settings}
    made = trainer(CPOTrainer, model, loss_type=kind, is_encoder_decoder=False, pad_token_id=0, **given)
    return theirs(made.get_batch_loss_metrics(model, collated(rows))[0], model)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cpo(policy, pairs, smoothing):
    """What TRL learns of the chosen answers is a mean over the tokens of a batch, ours of each answer: equal for one pair at a time."""
    preferring = CPO(beta=0.3, weight=0.0, label_smoothing=smoothing)
    assert_same(
        ours(preferring, policy, pairs), cpo_trainer(policy, pairs, "sigmoid", beta=0.3, label_smoothing=smoothing)
    )
    whole = preferring.model_copy(update={"weight": 0.5})
    for row in pairs[:2]:
        expected = cpo_trainer(policy, [row], "sigmoid", beta=0.3, label_smoothing=smoothing, cpo_alpha=0.5)
        assert_same(ours(whole, policy, [row]), expected)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.5)])
def test_simpo(policy, pairs, beta, gamma):
    expected = cpo_trainer(policy, pairs, "simpo", beta=beta, simpo_gamma=gamma)
    assert_same(ours(SimPO(beta=beta, gamma=gamma), policy, pairs), expected)


def orpo_trainer(policy, rows, weight):
    """What ORPOTrainer makes of the rows."""
    from trl.experimental.orpo import ORPOTrainer

    model = twin(policy)
    made = trainer(ORPOTrainer, model, beta=weight, is_encoder_decoder=False, padding_value=0)
    return theirs(made.get_batch_loss_metrics(model, collated(rows))[0], model)


def test_orpo(policy, pairs):
    """TRL learns the prompt too, and means over the tokens of a batch: the odds are equal on all rows, the whole where a pair has one token before its answers."""
    odds = [combined((1, of(0.5)), (-1, of(0.0))) for of in (
        lambda weight: ours(ORPO(weight=weight), policy, pairs),
        lambda weight: orpo_trainer(policy, pairs, weight),
    )]  # fmt: skip
    assert_same(*odds)
    for row in (of_lengths(row, prompt=1) for row in pairs[:2]):
        assert_same(ours(ORPO(weight=0.25), policy, [row]), orpo_trainer(policy, [row], 0.25))


# Wanted and unwanted answers: KTOTrainer


@pytest.mark.parametrize("labels", [(1, 0, 1, 1, 0), (1, 1, 1, 1, 1)], ids=["both", "wanted"])
def test_kto(policy, start, random_rows, labels):
    """How far the model drifted is judged by the next row's answer, in TRL by the one before; told which, both are the same."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    objective = KTO(beta=0.3, wanted=1.5, unwanted=0.7)
    rows = [replace(row, columns={LABEL: float(label)}) for row, label in zip(random_rows(5), labels, strict=True)]
    rows = with_references(start, objective.arranged(rows), 5)
    model, examples = twin(policy), []
    for row in rows:
        (prompt, answer), (_, other) = map(split, row.sequences)
        given = {"ref_logps": row.columns[reference(0)], "ref_KL_logps": row.columns[reference(1)]}
        example = {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other}
        examples.append({**example, "label": bool(row.columns[LABEL]), **given})
    made = trainer(
        trl.KTOTrainer,
        model,
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.7,
        loss_type="kto",
        calculate_KL=True,
    )
    inputs = DataCollatorForUnpairedPreference(pad_token_id=0)(examples)
    assert_same(ours(objective, policy, rows), theirs(made.compute_loss(model, inputs), model))
