"""Base and tuned answer the same questions from the same passages, and what tuning did to that is in the results, the report and the gate."""

import json
import shutil
from pathlib import Path

import pytest

from tunesmith.base import ConfigError, DataError
from tunesmith.base.files import read_json
from tunesmith.data.documents import Passage, Question
from tunesmith.data.render import Renderer
from tunesmith.grading.grounded import compared
from tunesmith.stages.documents import Retrieval, holds, readings
from tunesmith.stages.judge import room
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.report import write

EXAMPLE = Path(__file__).parents[2] / "examples" / "documents"
BOTH = [{"kind": "bm25"}, {"kind": "embedding", "model": "svd"}]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(EXAMPLE / "texts", folder / "texts")
    questions = (EXAMPLE / "questions.jsonl").read_text().splitlines()
    (folder / "questions.jsonl").write_text("\n".join(questions[::4]) + "\n")
    lines = [{"prompt": f"Shade {number}?", "answer": ["red", "green"][number % 2]} for number in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = {
        "model": str(tiny_folder), "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 6, "validation_fraction": 0, "cleaners": []},
        "finetune": {"epochs": 0.5, "batch": 8, "optimizer": {"learning_rate": 0.02}},
        "evaluate": {
            "graders": [{"kind": "exact"}], "max_tokens": 8, "baselines": False, "shots": 0, "general": None,
            "retrieval": {"documents": "texts", "questions": "questions.jsonl", "retrievers": BOTH, "passages": 2, "words": 40},
            "gate": {"margin": None, "beat": [], "rows": 9},
        },
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree))
    return path


@pytest.fixture(scope="module")
def evaluated(recipe):
    pipeline = open_run(recipe, recipe.parent / "run")
    return pipeline, pipeline.locked("evaluate")


def test_base_and_tuned_are_asked_the_same_and_compared_in_pairs(evaluated):
    pipeline, made = evaluated
    found = read_json(made / "results.json")["retrieval"]
    assert list(found) == ["bm25", "embedding"]
    told = [json.loads(line) for line in (made / "documents.jsonl").read_text().splitlines()]
    for kind, one in found.items():
        mine = [line for line in told if line["retriever"] == kind]
        assert one["questions"] == len(mine) == 9
        assert one["recall"]["value"] == pytest.approx(100 * sum(line["found"] for line in mine) / 9)
        assert one["recall"]["value"] > 70
        assert set(one["measures"]) == {"accuracy", "completeness", "grounding"}
        for system in ("base", "tuned"):
            assert read_json(made / f"{kind}-{system}.json") == [line["answers"][system] for line in mine]
    reasons = read_json(made / "results.json")["gate"]["reasons"]
    assert sum("worse from passages found by" in reason for reason in reasons) == 2
    inputs = {entry["name"] for entry in made.manifest["inputs"]}
    assert {"ferry.md", "questions.jsonl"} <= inputs
    assert pipeline.stage("evaluate").path == made.path


def test_the_report_tells_retriever_and_model_apart(evaluated):
    pipeline, _ = evaluated
    page = write(pipeline.run).read_text()
    for said in ("Answers from documents", "BM25 (k1=1.5, b=0.75)", "grounding", "held what is needed"):
        assert said in page


def test_a_changed_document_is_another_evaluation(evaluated, recipe):
    pipeline, made = evaluated
    text = recipe.parent / "texts" / "ferry.md"
    before = text.read_text()
    try:
        text.write_text(before.replace("180", "190"))
        again = open_run(pipeline.run.path).stage("evaluate")
    finally:
        text.write_text(before)
    assert again.path != made.path
    assert "190 passengers" in (again / "documents.jsonl").read_text()


def test_documents_that_are_wrong_are_found_before_anything_is_trained(recipe, tmp_path):
    wrong = tmp_path / "q.jsonl"
    wrong.write_text('{"question": "a?", "answer": "b", "document": "gone.md"}\n')
    pipeline = open_run(recipe, tmp_path / "run", (f"evaluate.retrieval.questions={wrong}",))
    with pytest.raises(DataError, match=r"there is no document 'gone\.md'"):
        pipeline.stage("initialise")
    scoring = ("finetune.objective={kind: reward}", "evaluate.graders=[{kind: pairwise}]")
    with pytest.raises(ConfigError, match=r"neither prompts nor answers from documents .*evaluate\.retrieval to null"):
        open_run(recipe, tmp_path / "run", scoring)


def test_every_question_of_the_example_is_answered_in_its_document(build):
    """A retriever that brings all texts has found every one; so what is missed is the retriever's, or the model's."""
    loaded = build(max_position_embeddings=4096)
    spec = Retrieval(documents=str(EXAMPLE / "texts"), questions=str(EXAMPLE / "questions.jsonl"), retrievers=BOTH, passages=99)  # fmt: skip
    found = readings(spec, loaded, 8)
    assert all(row.found for one in found.values() for row in one.rows)
    assert {len(one.rows) for one in found.values()} == {36}
    # what the passages say is whole, right, and taken from them
    perfect = [" ".join((*row.question.answers, *row.question.facts)) for row in found["bm25"].rows]
    for each in compared(found["bm25"].rows, perfect, perfect, "contained", 0)["measures"].values():
        assert each["tuned"]["value"] > 99


def test_passages_that_do_not_fit_are_left_out_from_the_last_on(build):
    loaded = build(max_position_embeddings=128)
    spec = Retrieval(documents=str(EXAMPLE / "texts"), questions=str(EXAMPLE / "questions.jsonl"), retrievers=BOTH[:1], words=30)  # fmt: skip
    reading = readings(spec, loaded, 8)["bm25"]
    assert reading.shortened > 0
    assert max(map(len, reading.prompts)) <= room(loaded, 8) == 120
    short = next(number for number, row in enumerate(reading.rows) if len(row.passages) == 1)
    text = Renderer(loaded.tokenizer).decode(reading.prompts[short])
    assert "Passage 1:" in text
    assert "Passage 2:" not in text


def test_when_passages_hold_what_is_needed():
    passages = [Passage("a.md", "It is 41 metres high."), Passage("b.md", "In 1922 it changed.")]

    def asked(*answers, **about):
        return Question("q:1", "How?", answers, **about)

    assert holds(passages, asked("41 metres"))
    assert holds(passages, asked("41 Metres", document="a.md"))
    assert not holds(passages, asked("41 metres", document="b.md"))
    assert holds(passages, asked("in the year 1922", facts=("1922",)))
    assert not holds(passages, asked("42 metres"))
    assert not holds([], asked("41 metres"))
