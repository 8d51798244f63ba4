"""Distillation against the dense softmax: values and gradients, the limits in which it is known, and a student that comes to its teacher."""

import json
import math
from dataclasses import replace

import pytest
import torch

import tunesmith
from tunesmith.base import ModelError, Run
from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.objectives.base import TAUGHT, TAUGHT_LOGP, Teaching
from tunesmith.methods.objectives.distill import Distill, rest
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.attention import plain
from tunesmith.models.forward import candidate_logps, top_logps
from tunesmith.models.fused import Decoder
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train
from tunesmith.training.others import Others, Split
from tunesmith.training.reference import with_teacher

VOCABULARY = 97


@pytest.fixture
def student(build):
    return build("llama", seed=3, vocab_size=VOCABULARY)


@pytest.fixture
def teacher(build):
    return build("qwen2", seed=4, vocab_size=VOCABULARY, hidden_size=32)


@pytest.fixture
def taught(teacher, random_rows):
    """Makes rows with what the teacher finds likeliest."""
    return lambda top, temperature=1.0, by=teacher: with_teacher(
        by, random_rows(4), Teaching(None, top, temperature), 3, VOCABULARY
    )


def dense(loaded, rows):
    """Logits [M, V] before each supervised token, and the tokens [M], one sequence at a time, by transformers alone."""
    logits, targets = [], []
    with plain(loaded.model):
        for row in rows:
            tokens, learn = (torch.from_numpy(each) for each in (row.sequences[0].tokens, row.sequences[0].learn))
            places = learn.nonzero()[:, 0]
            logits.append(loaded.model(tokens.long()[None]).logits[0, places - 1])
            targets.append(tokens.long()[places])
    return torch.cat(logits), torch.cat(targets)


def gradients(loss, loaded):
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in loaded.model.named_parameters()}
    loaded.model.zero_grad()
    return found


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "generic"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top", [1, 5, VOCABULARY])
def test_loss_and_gradient_are_those_of_the_dense_softmax(student, teacher, taught, top, temperature, fuse):
    """The likeliest tokens one by one and all others as one event; with the whole vocabulary the full divergence."""
    student.fuse = fuse
    rows = taught(top, temperature)
    found = Distill(top=top, temperature=temperature, weight=0.7)(student, Batch.of(rows))
    gradient = gradients(found.total, student)
    own_MV, target_M = dense(student, rows)
    with torch.no_grad():
        theirs_MV = (dense(teacher, rows)[0] / temperature).double().softmax(1)
    warm_MV = (own_MV / temperature).double().softmax(1)
    expected = -0.3 * own_MV.log_softmax(1).gather(1, target_M[:, None]).sum()
    for p_V, q_V in zip(theirs_MV, warm_MV, strict=True):
        named = p_V.argsort(descending=True)[:top]
        pairs = [(p_V[token], q_V[token]) for token in named]
        if top < VOCABULARY:
            pairs.append((1 - p_V[named].sum(), 1 - q_V[named].sum()))
        expected = expected + 0.7 * temperature**2 * sum(p * (p.log() - q.log()) for p, q in pairs)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, one in gradients(expected, student).items():
        assert (gradient[name] - one).norm() <= 2e-4 * one.norm() + 1e-6, name


@pytest.mark.parametrize("top", [3, VOCABULARY])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_who_teaches_himself_has_nothing_to_learn(student, taught, top, temperature):
    rows = taught(top, temperature, by=student)
    loss = Distill(top=top, temperature=temperature, weight=1.0)(student, Batch.of(rows)).total
    assert abs(loss.item()) < 1e-3
    assert max(one.abs().max() for one in gradients(loss, student).values()) < 1e-3


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_in_bf16_too_who_teaches_himself_has_nothing_to_learn(build, random_rows, temperature):
    """With so little probability beyond the teacher's tokens that what is rounded apart would make them more than certain."""
    sure = build("llama", seed=3, vocab_size=VOCABULARY, dtype=torch.bfloat16)
    with torch.no_grad():
        sure.model.lm_head.weight *= 8 * temperature
    rows = with_teacher(sure, random_rows(20), Teaching(None, 24, temperature), 20, VOCABULARY)
    assert sure.decoder() is not None
    batch = Batch.of(rows)
    beyond_M = rest(batch.token_columns[TAUGHT_LOGP])
    assert beyond_M.median() < 1e-3
    found = Distill(top=24, temperature=temperature, weight=1.0)(sure, batch)
    assert abs(found.total.item()) / batch.supervised < 2e-3
    _, logp_MK = candidate_logps(sure, batch, batch.token_columns[TAUGHT].long(), temperature)
    assert (logp_MK.exp().sum(1) <= 1 + 1e-5).all()
    torch.testing.assert_close(rest(logp_MK), beyond_M, rtol=0.1, atol=1e-4)


def test_without_weight_it_is_supervised_tuning(student, taught):
    batch = Batch.of(taught(4))
    assert Distill(weight=0.0)(student, batch).total.item() == pytest.approx(
        SFT()(student, batch).total.item(), rel=1e-5
    )


def test_the_divergence_is_never_negative_and_grows_with_what_is_told_apart(student, taught):
    """Joining tokens to one event loses information: the data processing inequality."""
    found = [
        float(Distill(weight=1.0)(student, Batch.of(taught(top))).total.detach()) for top in (1, 2, 8, 32, VOCABULARY)
    ]
    assert found == sorted(found)
    assert found[0] > 0


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_candidates_are_the_same_fused_or_not(student, random_rows, temperature):
    batch = Batch.of(random_rows(4))
    token_MK = torch.randint(0, VOCABULARY, (batch.supervised, 5), generator=torch.Generator().manual_seed(0))
    token_MK[:, 2] = batch.target_M
    fused = candidate_logps(student, batch, token_MK, temperature)
    assert student.decoder() is not None
    student.fuse = False
    for left, right in zip(fused, candidate_logps(student, batch, token_MK, temperature), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    if temperature == 1:
        torch.testing.assert_close(fused[1][:, 2], fused[0])


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "generic"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_what_a_teacher_finds_likeliest_is_read_in_chunks(build, random_rows, kind, fuse, monkeypatch):
    """No more logits exist at a time, where the model has a fused form, than those of a chunk."""
    monkeypatch.setattr("tunesmith.kernels.head.CHUNK", 4)
    loaded, rows = build(kind, seed=3, vocab_size=VOCABULARY), random_rows(4)
    loaded.fuse = fuse
    expected = (dense(loaded, rows)[0][:, :90] / 1.5).log_softmax(1).topk(5)
    widest, logits = [], Decoder.logits
    monkeypatch.setattr(Decoder, "logits", lambda self, hidden: widest.append(len(hidden)) or logits(self, hidden))
    token_MK, logp_MK = top_logps(loaded, Batch.of(rows), 5, 1.5, 90)
    torch.testing.assert_close(logp_MK, expected.values, atol=1e-5, rtol=1e-4)
    assert torch.equal(token_MK, expected.indices)
    assert (max(widest) <= 4) if fuse else not widest


def test_a_student_comes_to_its_teacher(student, taught):
    Full().attach(student, 0)
    rows = taught(16)
    optimizer = AdamW(learning_rate=1e-2).build(trainable(student.model))
    data = Dataset(rows, 4, 4, 60, 0)
    steps = list(train(student, Distill(weight=1.0), data.from_step(0), optimizer, lambda _: 1.0, seed=0))
    assert steps[-1].stats["divergence"] < 0.1 * steps[0].stats["divergence"]


def test_a_tail_of_nothing_has_a_finite_slope(student, taught):
    """A model that is surer than float32 can tell of the teacher's tokens."""
    rows = taught(2)
    sure = [
        replace(each, columns={**each.columns, TAUGHT_LOGP: each.columns[TAUGHT_LOGP] * 0 - math.log(2)})
        for each in (row.sequences[0] for row in rows)
    ]
    rows = [replace(row, sequences=(each,)) for row, each in zip(rows, sure, strict=True)]
    with torch.no_grad():
        student.model.lm_head.weight *= 50
    loss = Distill(weight=1.0)(student, Batch.of(rows)).total
    assert loss.isfinite()
    assert all(one.isfinite().all() for one in gradients(loss, student).values())


def test_a_teacher_with_other_tokens_is_refused_unread(build, tiny_folder, tmp_path, rows, monkeypatch):
    for place in ("training.others", "stages.initialise"):
        monkeypatch.setattr(f"tunesmith.{place}.load", lambda *_: pytest.fail("weights were loaded"))
    other = build("llama", seed=1)
    other.tokenizer.add_tokens(["<new>"])
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    others, reason = (
        Others(str(tiny_folder), "fp32", 4, "answers"),
        r"cannot teach .*, since its tokenizer has other tokens",
    )
    with pytest.raises(ModelError, match=reason):
        others.asked(Distill(teacher=str(tmp_path)), [Split(rows, [])])
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "Say {n}.", "answer": "yes"}}\n' for n in range(32)))
    tune = {"objective": {"kind": "distill", "teacher": str(tmp_path)}}
    recipe = {"model": str(tiny_folder), "prepare": {"source": "rows.jsonl", "cleaners": []}, "finetune": tune}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(ModelError, match=reason):
        tunesmith.initialise(tmp_path / "recipe.yaml", folder=tmp_path / "run")


def test_a_teacher_that_knows_padding_names_only_tokens_of_the_student(build, tiny_folder, tmp_path, rows):
    other = build("llama", seed=1, vocab_size=len(build().tokenizer) + 64)
    with torch.no_grad():
        other.model.lm_head.weight[-64:] *= 100
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    (found,) = Others(str(tiny_folder), "fp32", 4, "answers").asked(Distill(teacher=str(tmp_path)), [Split(rows, [])])
    columns = found[0].sequences[0].columns
    assert columns[TAUGHT].shape == (rows[0].supervised, 16)
    assert max(row.sequences[0].columns[TAUGHT].max() for row in found) < len(other.tokenizer)


@pytest.mark.parametrize("named", [True, False], ids=["teacher", "start"])
def test_a_run_learns_from_a_teacher(build, tiny_folder, tmp_path, named):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {n}.", "answer": f"yes {n}"}) + "\n" for n in range(32))
    )
    other = build("llama", seed=1)
    with torch.no_grad():
        other.model.lm_head.weight *= 6  # so that it has something to say
    other.model.save_pretrained(tmp_path / "big")
    other.tokenizer.save_pretrained(tmp_path / "big")
    recipe = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 4, "validation_fraction": 4, "cleaners": []},
        "finetune": {
            "objective": {"kind": "distill", "top": 4, "weight": 0.9, **({"teacher": "big"} if named else {})},
            "optimizer": {"learning_rate": 0.02},
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    tunesmith.finetune(tmp_path / "recipe.yaml", folder=tmp_path / "run")
    events = list(Run(tmp_path / "run").events.read("step"))
    assert events[-1]["loss"] < events[0]["loss"]
    if named:
        assert events[-1]["divergence"] < events[0]["divergence"]
    else:
        assert abs(events[0]["divergence"]) < 1e-3 < events[-1]["divergence"]
