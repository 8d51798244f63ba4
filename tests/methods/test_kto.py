import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tunesmith
from tunesmith.base import ConfigError, DataError, Run
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.data.example import Sequence as Tokens
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.kto import KTO, LABEL
from tunesmith.models.forward import padded_logps
from tunesmith.training.reference import with_references


@pytest.fixture
def moved(build):
    loaded = build("llama", spread=0.2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    return loaded


@pytest.fixture
def judged(moved, random_rows):
    rows = [replace(row, columns={LABEL: float(number % 3 == 0)}) for number, row in enumerate(random_rows(6))]
    found = with_references(moved, KTO().arranged(rows), 4)
    with torch.no_grad():
        for name, weight in trainable(moved.model).items():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    return found


def test_the_second_answer_is_one_to_another_prompt():
    """Rows that were made of preferences hold two answers to each prompt."""
    learn = np.array([False, False, True, True])
    one, other, third = (Row(f"t:{n}", (Tokens(np.array([1, n, 10 + n, 2], dtype=np.int32), learn),)) for n in range(3))
    again = replace(one, origin="again", sequences=(Tokens(np.append(one.sequences[0].tokens, np.int32(5)), np.append(one.sequences[0].learn, True)),))  # fmt: skip
    found = KTO().arranged([one, again, other, third])
    answers = [each.sequences[1].tokens[each.sequences[1].learn].tolist() for each in found]
    own = [each.sequences[0].tokens[each.sequences[0].learn].tolist() for each in (one, again, other, third)]
    assert answers == [own[2], own[2], own[3], own[0]]
    alone = KTO().arranged([one, again])
    assert alone[0].sequences[1].tokens.tolist() == again.sequences[0].tokens.tolist()


def test_the_second_sequence_is_the_prompt_with_the_next_rows_answer(random_rows):
    rows = random_rows(4)
    longest = max(map(len, rows))
    for row, after, found in zip(rows, [*rows[1:], rows[0]], KTO().arranged(rows), strict=True):
        own, theirs = found.sequences
        assert own is row.sequences[0]
        first = int(own.learn.argmax())
        assert theirs.tokens[:first].tolist() == own.tokens[:first].tolist()
        assert not theirs.learn[:first].any()
        answer = after.sequences[0].tokens[int(after.sequences[0].learn.argmax()) :]
        assert theirs.tokens[first:].tolist() == answer[: longest - first].tolist()
        assert theirs.learn[first:].all()


def test_the_second_sequence_is_no_longer_than_the_longest_row():
    """A long prompt with another's long answer may be beyond the model's context; a token of it is learnt all the same."""
    shapes = ((25, 5), (5, 25), (29, 1))
    rows = [
        Row(f"t:{n}", (Tokens(np.arange(100 * n, 100 * n + sum(shape), dtype=np.int32), np.arange(30) >= shape[0]),))
        for n, shape in enumerate(shapes)
    ]
    seconds = [row.sequences[1] for row in KTO().arranged(rows)]
    assert [(len(one), int(one.learn.sum())) for one in seconds] == [(30, 5), (6, 1), (30, 1)]
    assert seconds[0].tokens.tolist() == [*range(25), *range(105, 110)]


def test_loss_and_gradient_are_those_of_the_formula(moved, judged):
    """arXiv:2402.01306, eq. 7 and 8, over padded rows one at a time; the drift is a number, not a function of the weights."""
    objective = KTO(beta=0.3, wanted=1.2, unwanted=0.8)
    found = objective(moved, Batch.of(judged)).total
    found.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(moved.model).items()}
    moved.model.zero_grad()

    def gain(row, answer):
        alone = Batch.of([type(row)("x", (row.sequences[answer],))])
        return padded_logps(moved, alone).sum() - row.columns[f"reference_{answer}"]

    drift = max(0.0, sum(float(gain(row, 1).detach()) for row in judged) / len(judged))
    expected = torch.zeros(())
    for row in judged:
        if row.columns[LABEL]:
            expected = expected + 1.2 - 1.2 * torch.sigmoid(0.3 * (gain(row, 0) - drift))
        else:
            expected = expected + 0.8 - 0.8 * torch.sigmoid(0.3 * (drift - gain(row, 0)))
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, weight in trainable(moved.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_rows_that_nobody_judged_are_refused(random_rows):
    with pytest.raises(DataError, match="random:1: does not say whether its answer is wanted"):
        KTO().check(random_rows(2))


def test_a_run_learns_from_thumbs_and_micro_batches_are_refused(tiny_folder, tmp_path):
    lines = [{"prompt": f"Say {n}.", "completion": "yes" if n % 2 else "no", "label": bool(n % 2)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line["label"]))
    recipe = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test": "test.jsonl", "validation_fraction": 4, "cleaners": []},
        "finetune": {"objective": {"kind": "kto"}, "epochs": 2, "batch": 8, "optimizer": {"learning_rate": 0.01}},
        "evaluate": {"graders": [{"kind": "perplexity"}], "max_tokens": 4, "gate": {"margin": None, "beat": []}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    tunesmith.finetune(path, folder=tmp_path / "run")
    events = list(Run(tmp_path / "run").events.read("step"))
    assert events[0]["loss"] == pytest.approx(0.5, abs=1e-3)
    assert events[-1]["margin"] > events[0]["margin"]
    recipe["finetune"]["micro_batch"] = 4
    path.write_text(json.dumps(recipe))
    with pytest.raises(ConfigError, match="compares the rows of a step with each other"):
        tunesmith.finetune(path, folder=tmp_path / "run2")
