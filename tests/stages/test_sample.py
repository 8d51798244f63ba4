"""What a model says is sampled the same way twice, and what is kept of it is what earned most, in a form that prepare reads."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tunesmith
from tunesmith.base import ConfigError, DataError, Events, Output, Run
from tunesmith.base.spec import validate
from tunesmith.data.example import Example
from tunesmith.grading import AnswerGrader, Score
from tunesmith.stages import sample as stage
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.prepare import Prepare, prepare
from tunesmith.stages.sample import Sample, Try
from tunesmith.training.rollouts import Reward

USER = {"role": "user", "content": "2 + 2?"}


class Short(AnswerGrader):
    """Pays for answers of few letters."""

    def score(self, answer: str, example: Example) -> Score:
        return Score(max(0.0, 1 - len(answer) / 400), 1.0)


def spec(**settings) -> Sample:
    """Paid by `Short`, which is no member of its family: it is for this file alone."""
    reward = Reward.model_construct(grader=Short.model_construct(kind="short"), weight=1.0)
    return Sample(**settings).model_copy(update={"rewards": (reward,)})


def example(gold: str = "4", **fields) -> Example:
    return Example("t.jsonl:1", (USER,), (({"role": "assistant", "content": gold},),), **fields)


def tries(*given: tuple[str, float, float]) -> list[Try]:
    return [Try(text, 3, True, logp, reward) for text, logp, reward in given]


@pytest.fixture
def recipe(tmp_path, tiny_folder) -> Path:
    lines = [
        {"id": n, "kind": "ab"[n % 2], "completion_note": n, "messages": [{"role": "system", "content": "Shades."}, {"role": "user", "content": f"Shade {n}?"}, {"role": "assistant", "content": "red"}]}
        for n in range(24)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": str(tiny_folder), "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 4, "validation_fraction": 0, "cleaners": []},
        "finetune": {"epochs": 1.0, "batch": 20}, "evaluate": {"graders": [{"kind": "exact"}]},
        "sample": {"system": "base", "rewards": [{"grader": {"kind": "chrf"}}], "samples": 3, "max_tokens": 6, "at_least": 0.0},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture
def ends(monkeypatch) -> None:
    """Whatever the random model says counts as ended by itself."""
    make = stage._try
    monkeypatch.setattr(stage, "_try", lambda *given: replace(make(*given), whole=True))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_answer_that_earns_most_is_kept_if_it_earns_enough():
    given = tries(("5", -1.0, 0.0), ("four", -2.0, 0.5), ("4", -9.0, 1.0), ("4", -3.0, 1.0), ("", -1.0, 2.0))
    (row,) = Sample().kept(example(meta={"id": 7, "chosen": "misleading"}), given, 1.0)
    assert row == {
        "id": 7, "origin": "t.jsonl:1", "prompt": [USER], "completion": [{"role": "assistant", "content": "4"}], "reward": 1.0,
    }  # fmt: skip
    assert Sample().kept(example(), given[:2], 1.0) == []
    texts = [row["completion"][0]["content"] for row in Sample(most=3, at_least=0.5).kept(example(), given, 1.0)]
    assert texts == ["4", "four"]  # the best first, none twice, and none that says nothing
    cut_off = [Try("4", 3, False, -1.0, 1.0)]
    assert Sample().kept(example(), cut_off, 1.0) == []  # with an end token behind it, it would be another answer


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, [("4", "6")]),  # earns least, and is the likelier of two
        ({"rejected": "likeliest"}, [("4", "four")]),
        ({"most": 5}, [("4", "6"), ("4", "5"), ("4", "four")]),
        ({"chosen": "best"}, [("Four!", "6")]),
        ({"chosen": "best", "at_least": 3.0}, []),
    ],
)
def test_a_pair_is_a_right_answer_and_a_wrong_one(settings, said):
    chosen = Sample(keep="pairs", **settings)
    given = tries(("4", -1.0, 1.0), ("6", -3.0, 0.0), ("5", -4.0, 0.0), ("6", -3.0, 0.0), ("four", -2.0, 0.5), ("Four!", -9.0, 2.0))  # fmt: skip
    found = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in chosen.kept(example(), given, 1.0)]
    assert found == said
    assert Sample(keep="pairs").kept(example(), tries(("4", -1.0, 1.0)), 1.0) == []  # none is wrong


def test_what_is_said_twice_stands_where_it_was_said_best():
    given = tries(("4", -9.0, 1.0), ("no", -0.1, 0.0), ("maybe", -1.0, 0.0), ("no", -5.0, 0.0))
    (row,) = Sample(keep="pairs", rejected="likeliest").kept(example(), given, 1.0)
    assert row["rejected"][0]["content"] == "no"


def test_rows_are_read_back_by_prepare_with_all_that_stood_beside_them(recipe, tmp_path, ends):
    for keep in ("best", "pairs"):
        made = tunesmith.sample(recipe, f"sample.keep={keep}", folder=tmp_path / keep)
        rows = read(made / "rows.jsonl")
        trained = {row["origin"] for row in read(Run(tmp_path / keep).artifact("prepare") / "train.jsonl")}
        assert rows
        assert {row["origin"] for row in rows} <= trained
        assert all({"id", "kind", "completion_note"} <= set(row) for row in rows)
        folder = tmp_path / f"again-{keep}"
        folder.mkdir()
        settings = Prepare(source=str(made / "rows.jsonl"), test=str(tmp_path / "rows.jsonl"), validation_fraction=0, cleaners=())  # fmt: skip
        out = Output(folder, Events(folder / "events.jsonl"))
        prepare(settings, out=out, tokenizer_name=open_run(recipe).recipe.model, seed=0)
        found = [Example.from_json(value) for value in read(folder / "train.jsonl")]
        assert out.metrics["quarantined"] == 0
        assert len(found) == len(rows)
        for one, row in zip(found, rows, strict=True):
            assert [message["role"] for message in one.prompt] == ["system", "user"]
            assert one.meta["origin"] == row["origin"]
            assert len(one.answers) == (2 if keep == "pairs" else 1)
            assert one.answers[0] != one.answers[-1] or keep == "best"


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_sampled_depends_on_the_seed_alone_and_a_killed_sampling_goes_on(recipe, tmp_path, ends, monkeypatch, damaged):  # fmt: skip
    monkeypatch.setattr(stage, "TOGETHER", 8)
    whole = tunesmith.sample(recipe, folder=tmp_path / "whole")
    other = tunesmith.sample(recipe, "seed=1", folder=tmp_path / "other")
    assert (whole / "rows.jsonl").read_text() != (other / "rows.jsonl").read_text()
    calls, sampled = [], stage._sampled

    def cut_off(spec, loaded, examples, start, seed):
        calls.append(start)
        if len(calls) == 2:
            raise RuntimeError("power")
        return sampled(spec, loaded, examples, start, seed)

    monkeypatch.setattr(stage, "_sampled", cut_off)
    with pytest.raises(RuntimeError, match="power"):
        tunesmith.sample(recipe, folder=tmp_path / "cut")
    (answers,) = (tmp_path / "cut").glob("sample-*.partial/answers.jsonl")
    text = answers.read_text().replace('"text": "', '"text": "Un', damaged)
    answers.write_text(text + '{"origin": "torn')
    again = tunesmith.sample(recipe, folder=tmp_path / "cut")
    assert calls == [0, 8, *([0] if damaged else []), 8, 16]
    assert [event["reason"] for event in Run(tmp_path / "cut").events.read("damaged")] == (
        [f"{answers}: line 1 and on differ from what was written; they are made again"] if damaged else []
    )
    for name in ("rows.jsonl", "answers.jsonl"):
        assert (again / name).read_text() == (whole / name).read_text()
    assert again.metrics["answers"] == 3 * 20


def test_the_summary_counts_what_was_right(recipe, tmp_path, ends, monkeypatch):
    pipeline = open_run(recipe, tmp_path / "run")
    right = iter([True, False, False] * 5 + [False] * 45)
    score = lambda self, answer, example: Score(float(next(right)), 1.0)  # noqa: E731
    monkeypatch.setattr(type(pipeline.recipe.sample.rewards[0].grader), "score", score)
    pipeline.recipe = pipeline.recipe.model_copy(update={"sample": pipeline.recipe.sample.model_copy(update={"at_least": 1.0})})  # fmt: skip
    found = pipeline.locked("sample").metrics
    assert (found["prompts"], found["pass_at_1"], found["pass_at_n"], found["n"]) == (20, 5 / 60, 5 / 20, 3)
    assert found["reward"] == pytest.approx(5 / 60)
    assert found["kept"] == 5


def test_the_tuned_model_answers_unless_told_otherwise(recipe, tmp_path, ends):
    made = tunesmith.sample(recipe, "sample.system=tuned", folder=tmp_path / "r")
    assert [parent["stage"] for parent in made.manifest["parents"]] == ["prepare", "finetune"]
    base = tunesmith.sample(recipe, folder=tmp_path / "r")
    assert [parent["stage"] for parent in base.manifest["parents"]] == ["prepare"]
    assert made.path != base.path


def test_a_pruned_model_answers_as_it_was_pruned(recipe, tmp_path, ends, monkeypatch):
    merge, given = stage.merge, []
    monkeypatch.setattr(stage, "merge", lambda *parts: given.append(parts[-1]) or merge(*parts))
    made = tunesmith.sample(recipe, "sample.system=tuned", "prune.method={kind: magnitude}", folder=tmp_path / "r")
    assert [parent["stage"] for parent in made.manifest["parents"]] == ["prepare", "finetune", "prune"]
    assert [each.path for each in given] == [Run(tmp_path / "r").artifact("prune").path]


def test_a_model_that_scores_answers_is_not_asked_for_any(recipe, tmp_path):
    scoring = (
        "finetune.objective={kind: reward}",
        "evaluate={graders: [{kind: pairwise}], general: null, gate: {margin: null}}",
    )
    with pytest.raises(
        ConfigError, match=r"scores answers and writes none, so there is nothing to sample; set sample\.system=base"
    ):
        tunesmith.sample(recipe, *scoring, "sample.system=tuned", folder=tmp_path / "r")
    assert not Run(tmp_path / "r").states
    assert open_run(recipe, tmp_path / "r", scoring).before("sample") == ("prepare",)


def test_what_makes_no_sense_is_refused(recipe, tmp_path):
    with pytest.raises(ConfigError, match="perplexity cannot judge one answer by itself"):
        validate(Sample, {"rewards": [{"grader": {"kind": "perplexity"}}]}, "here")
    with pytest.raises(DataError, match=r"none of 60 answers to 20 prompts .* earned 2.*lower sample.at_least"):
        tunesmith.sample(recipe, "sample.at_least=2", folder=tmp_path / "r")
    made = Run(tmp_path / "r")
    assert made.states["sample"]["state"] == "failed"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"just words {n}"}) + "\n" for n in range(9)))
    with pytest.raises(DataError, match=r"rows\.jsonl:\d: plain text has no prompt"):
        tunesmith.sample(recipe, folder=tmp_path / "text")
    labelled = [{"prompt": f"a {n}", "completion": "b", "label": n % 2 == 0} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    with pytest.raises(DataError, match=r"rows\.jsonl:\d: its answer has a label.*set sample.chosen=best"):
        tunesmith.sample(recipe, "sample.keep=pairs", folder=tmp_path / "kto")


def test_a_grader_that_likes_short_answers_gets_shorter_rows(recipe, tmp_path, ends):
    """The whole stage, with a reward that a model without any skill can earn more or less of."""
    pipeline = open_run(recipe, tmp_path / "run", ("sample.samples=6",))
    prepared = pipeline.locked("prepare")
    out = Output(tmp_path, Events(tmp_path / "events.jsonl"))
    chosen = spec(system="base", samples=6, max_tokens=8, at_least=0.0, keep="pairs", chosen="best")
    about = {"model": pipeline.recipe.model, "precision": "fp32", "adapter": pipeline.adapter, "seed": 0}
    length = lambda row, name: len(row[name][0]["content"])  # noqa: E731
    stage.sample(chosen, prepared, out=out, **about)
    rows = read(tmp_path / "rows.jsonl")
    assert len(rows) > 15
    assert all(length(row, "chosen") < length(row, "rejected") for row in rows)
