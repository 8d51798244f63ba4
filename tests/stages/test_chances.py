"""How probable each class is: that of one candidate after the other, and no more is computed than what differs."""

import json

import pytest
import torch

from tunesmith.base import DataError
from tunesmith.base.files import read_json
from tunesmith.data.batch import Batch
from tunesmith.data.choices import answering
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer
from tunesmith.grading.average_precision import AveragePrecision
from tunesmith.models.forward import padded_logps
from tunesmith.stages import chances as module
from tunesmith.stages.chances import asking, chances
from tunesmith.stages.pipeline import open_run

GOLDS = (
    {"role": "program", "in": "c"},
    {"role": "program-data", "in": "c++", "extra": "yes"},
    {"in": "c"},
    {"role": "library", "extra": "no"},
)


@pytest.fixture
def examples():
    return [
        Example(
            f"t:{number + 1}",
            ({"role": "system", "content": "Name."}, {"role": "user", "content": f"What is package {'x' * number}?"}),
            (({"role": "assistant", "content": json.dumps(gold)},),),
        )
        for number, gold in enumerate(GOLDS)
    ]


def slowly(loaded, example, answers):
    """Each candidate by itself, over all tokens of its answer."""
    renderer, found = Renderer(loaded.tokenizer), []
    for text in answers.values():
        batch = Batch.of([renderer.row(answering(example, text))])
        found.append(padded_logps(loaded, batch).double().sum())
    return dict(zip(answers, torch.stack(found).softmax(0).tolist(), strict=True))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_they_are_those_of_one_candidate_after_the_other(kind, build, examples, monkeypatch):
    loaded = build(kind, seed=5)
    asked = AveragePrecision(by="answer.*").asked(examples)
    assert [list(each) for each in asked] == [["role", "in"], ["role", "in", "extra"], ["in"], ["role", "extra"]]
    assert list(asked[0]["role"]) == ["library", "program", "program-data"]
    found = chances(loaded, examples, asked)
    with torch.no_grad():
        for example, answers, told in zip(examples, asked, found, strict=True):
            assert told.keys() == answers.keys()
            for field, share in told.items():
                assert share == pytest.approx(slowly(loaded, example, answers[field]), abs=1e-5)
                assert sum(share.values()) == pytest.approx(1)
    monkeypatch.setattr(module, "TOKENS", 1)
    for one, other in zip(found, chances(loaded, examples, asked), strict=True):
        for field, share in one.items():
            assert share == pytest.approx(other[field], abs=1e-5)


def test_what_the_candidates_share_is_scored_for_none_of_them(build, examples):
    loaded = build("llama")
    asked = AveragePrecision(by="answer.in").asked(examples)
    groups = list(module._groups(Renderer(loaded.tokenizer), examples, asked))
    assert [(number, field) for number, field, _ in groups] == [(0, ""), (1, ""), (2, "")]
    for _, _, row in groups:
        first = min(int(each.learn.argmax()) for each in row.sequences)
        heads = {tuple(each.tokens[:first].tolist()) for each in row.sequences}
        assert len(heads) == 1
        assert len({int(each.tokens[first]) for each in row.sequences}) > 1
        assert all(each.learn[first:].all() for each in row.sequences)


def test_nothing_is_asked_unless_a_grader_reads_it(examples):
    assert asking((), examples) is None


def test_rows_that_no_chances_can_be_told_of_are_found_before_anything_is_trained(tiny_folder, tmp_path):
    lines = [{"prompt": f"Shade {number}?", "answer": f"word {number}"} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = {
        "model": str(tiny_folder), "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 12, "validation_fraction": 0, "cleaners": []},
        "evaluate": {"graders": [{"kind": "average_precision", "classes": 9}]},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="finds 12 classes in 12 rows, which is more than 9; mend `by`"):
        open_run(tmp_path / "recipe.yaml", tmp_path / "run").stage("initialise")
    few = ("evaluate.rows=9",)  # no more are asked
    open_run(tmp_path / "recipe.yaml", tmp_path / "run", few).stage("initialise")
    two = ("evaluate.graders=[{kind: average_precision}]", "evaluate.rows=2", "evaluate.max_tokens=2")
    pipeline = open_run(tmp_path / "recipe.yaml", tmp_path / "run", two)
    assert len(read_json(pipeline.ask_base() / "chances.json")) == 2
    assert not (pipeline.ask_base(1) / "chances.json").exists()  # worked examples are no part of what is scored
