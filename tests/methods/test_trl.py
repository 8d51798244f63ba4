"""Every loss that TRL has too, held against TRL's own code: the same random model, the same rows of unequal lengths, values and gradients in float32.

TRL's trainers are made without their constructors, which ask for data sets and folders, and given what their loss functions read.
Where TRL means something else than the paper, the test says so and checks how the two are related.
"""

import copy
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trl
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from tunesmith.data.batch import Batch
from tunesmith.data.example import Sequence
from tunesmith.methods.objectives.base import OLD, START, Teaching, reference, reward
from tunesmith.methods.objectives.cpo import CPO
from tunesmith.methods.objectives.distill import Distill
from tunesmith.methods.objectives.dpo import DPO
from tunesmith.methods.objectives.grpo import GRPO
from tunesmith.methods.objectives.ipo import IPO
from tunesmith.methods.objectives.kto import KTO, LABEL
from tunesmith.methods.objectives.orpo import ORPO
from tunesmith.methods.objectives.reinforce import Reinforce
from tunesmith.methods.objectives.rloo import RLOO
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.objectives.simpo import SimPO
from tunesmith.training.reference import with_references, with_teacher, with_token_logps

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")


@pytest.fixture
def policy(build):
    """What learns."""
    return build("llama", seed=3, vocab_size=97)


@pytest.fixture
def start(build):
    """What it is held to: another model, so that no ratio is 1."""
    return build("llama", seed=4, vocab_size=97)


@pytest.fixture
def pairs(random_rows, start):
    """Five pairs of answers of three to eight tokens behind prompts of unequal lengths."""
    rows = random_rows(5, answers=2)
    assert len({len(sequence) for row in rows for sequence in row.sequences}) > 3  # or padding would not be tested
    return with_references(start, rows, 5)


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


# Single answers: KTOTrainer and SFTTrainer


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
