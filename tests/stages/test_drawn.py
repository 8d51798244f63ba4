"""Rows that stand for others, to measure by or to show, are drawn from all of them: files are often in the order of their classes."""

import json
import shutil
from dataclasses import replace

import pytest

import tunesmith
from tunesmith.base import ConfigError, DataError
from tunesmith.base.files import read_json
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.grading.average_precision import AveragePrecision
from tunesmith.models.load import load
from tunesmith.models.sampling import Completion
from tunesmith.stages import judge, judgeable
from tunesmith.stages.judge import as_shots, requests, with_shots, worked
from tunesmith.stages.pipeline import open_run


@pytest.fixture
def recipe(tmp_path, tiny_folder):
    """Rows sorted by their answer, all of them held out in a file of their own too."""
    lines = [json.dumps({"prompt": f"Shade {n}?", "answer": "red" if n < 40 else "green"}) for n in range(80)]
    for name in ("rows", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines if name == "rows" else reversed(lines)) + "\n")
    settings = {
        "model": str(tiny_folder), "precision": "fp32", "prepare": {"source": "rows.jsonl", "test": "test.jsonl", "validation_fraction": 20, "cleaners": [], "classes": "answer"},
        "finetune": {"epochs": 0.5, "validation": {"rows": 8}}, "evaluate": {"graders": [{"kind": "exact"}], "rows": 8, "baselines": False, "shots": 4, "max_tokens": 4},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    return tmp_path / "recipe.yaml"


def counts(examples) -> list[int]:
    golds = [example.gold for example in examples]
    return [golds.count(name) for name in ("red", "green")]


def test_a_part_of_a_split_holds_each_class_and_rows_stay_beside_their_examples(recipe, tmp_path):
    folder = open_run(recipe, tmp_path / "run").prepare().path
    examples, rows = load_examples(folder, "test", 8), load_split(folder, "test", 8)
    assert counts(examples) == [4, 4]
    assert [row.origin for row in rows] == [example.origin for example in examples]
    every = [example.origin for example in load_examples(folder, "test")]
    assert [every.index(example.origin) for example in examples] == sorted(every.index(e.origin) for e in examples)
    assert {example.origin for example in examples} < {example.origin for example in load_examples(folder, "test", 20)}
    assert load_examples(folder, "test", 999) == load_examples(folder, "test")


def test_examples_in_a_prompt_are_drawn_from_all_rows_and_fit(recipe, tmp_path, tiny_folder):
    folder = open_run(recipe, tmp_path / "run").prepare().path
    train, test, loaded = load_examples(folder, "train"), load_examples(folder, "test", 8), load(str(tiny_folder), "fp32")  # fmt: skip
    shots = worked(train, 6)
    assert 0 not in counts(shots)
    assert shots == worked(train, 6)
    long = replace(test[0], prompt=({"role": "user", "content": " ".join(["red"] * 150)},))
    prompts, shortened = requests(loaded, [long, *test[1:]], 4, shots)
    assert shortened == 1
    of = lambda row, count: loaded.renderer().prompt(with_shots(row, as_shots(shots[6 - count :])))  # noqa: E731
    assert prompts[1:] == [of(row, 6) for row in test[1:]]
    (most,) = (count for count in range(1, 6) if prompts[0] == of(long, count))
    assert len(of(long, most)) <= 252 < len(of(long, most + 1))  # of the model's context of 256 tokens


def test_classes_that_are_asked_about_are_those_of_all_rows(recipe, tmp_path):
    test = load_examples(open_run(recipe, tmp_path / "run").prepare().path, "test")
    asked = AveragePrecision(by="answer", rows=10).asked(test)
    assert sum(map(bool, asked)) == 10
    assert any(asked[:40])
    assert any(asked[40:])


CALLING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that has a form for calls."""


@pytest.fixture
def calls(recipe, tmp_path, tiny_folder):
    """The recipe with a model whose template knows calls, and rows that end with one."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CALLING)
    tools = [{"type": "function", "function": {"name": name}} for name in ("light", "heat")]
    rows = []
    for number in range(80):
        call = {
            "type": "function",
            "function": {"name": "light" if number % 4 else "heat", "arguments": {"room": number % 3}},
        }
        talk = [
            {"role": "user", "content": f"Room {number}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        rows.append(json.dumps({"messages": talk, "tools": tools}) + "\n")
    for name in ("rows", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(rows[:40] if name == "rows" else rows[40:]))
    return recipe, ("prepare.classes=null", f"model={folder}", "evaluate.max_tokens=64")


def test_rows_that_end_with_calls_are_judged_by_calls(calls, tmp_path, monkeypatch):
    recipe, settings = calls
    right = '<tool_call>{"name": "light", "arguments": {"room": 1}}</tool_call>'
    ends = iter([*["length"] * 3, *["stop"] * 20, "length"])  # three of the base, and the last of the tuned model's
    monkeypatch.setattr(judge, "generate", lambda _, prompts, sampling: [Completion(right, finish=next(ends)) for _ in prompts])  # fmt: skip
    made = tunesmith.evaluate(
        recipe, *settings, "evaluate.graders=[{kind: tool_calls}]", "evaluate.baselines=true", folder=tmp_path / "run"
    )
    results = read_json(made / "results.json")
    test = load_examples(open_run(recipe, tmp_path / "run", settings).prepare().path, "test", 8)
    expected = 100 * sum(example.calls == (("light", {"room": 1}),) for example in test) / 8
    block = results["task"]["graders"]["tool_calls"]
    assert block["systems"]["tuned"]["value"] == expected > 0
    assert results["task"]["systems"] == ["base", "few-shot", "tuned"]
    assert "answers are calls of tools" in results["notes"]["svm"]
    assert results["cut_off"] == made.metrics["cut_off"] == {"base": 37.5, "tuned": 12.5}
    assert results["notes"]["base"].endswith("; 3 of 8 answers were cut off at evaluate.max_tokens=64")
    assert "cut off" not in results["notes"]["few-shot"]
    line = json.loads((made / "answers.jsonl").read_text().splitlines()[0])
    assert line["gold"] in (
        'light({"room": 0})',
        'light({"room": 1})',
        'light({"room": 2})',
        'heat({"room": 0})',
        'heat({"room": 1})',
        'heat({"room": 2})',
    )


def test_calls_are_no_text_to_compare(calls, tmp_path):
    recipe, settings = calls
    with pytest.raises(DataError, match=r"exact cannot judge by it: its last turn calls a tool.*kind: tool_calls"):
        tunesmith.run(
            recipe, *settings, "evaluate.graders=[{kind: exact}, {kind: tool_calls}]", folder=tmp_path / "run"
        )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": "b", "label": False}, "its answer is an unwanted one"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("grader", ["exact", "perplexity"])
def test_what_is_no_right_answer_is_not_graded_by(recipe, tmp_path, row, said, grader):
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises((ConfigError, DataError), match=rf"test\.jsonl:1: {grader} cannot judge by it: {said}"):
        tunesmith.run(recipe, f"evaluate.graders=[{{kind: {grader}}}]", folder=tmp_path / "run")


def held_out(recipe, folder, rows, *settings):
    """What is found out before training of such rows to measure by."""
    (recipe.parent / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = open_run(recipe, folder, ("evaluate.rows=null", *settings))
    chosen = pipeline.recipe
    judgeable.check(chosen.evaluate, pipeline.prepare(), chosen.model, chosen.initialise.adapter)


def test_answers_that_would_be_cut_off_are_found_before_training(recipe, tmp_path):
    rows = [{"prompt": f"Shade {n}?", "answer": " ".join(["red"] * (9 if n < 7 else 2))} for n in range(12)]
    with pytest.raises(ConfigError, match=r"4 tokens cut off 7 of 12 right answers .* exact .* set evaluate\.max_tokens=9"):  # fmt: skip
        held_out(recipe, tmp_path / "run", rows)
    with pytest.raises(ConfigError, match="cut off 7 of 12 right answers"):  # where the prompt is learnt too
        held_out(recipe, tmp_path / "run", rows, "prepare.supervise=all")
    held_out(recipe, tmp_path / "run", rows, "evaluate.max_tokens=9")
    held_out(recipe, tmp_path / "run", rows, "evaluate.graders=[{kind: perplexity}]")
    held_out(recipe, tmp_path / "run", [*rows[4:], *rows[7:]])


def test_prompts_that_leave_no_room_for_an_answer_are_found_before_training(recipe, tmp_path):
    """Of a conversation that was cut off by prepare the whole is asked."""
    turns = ["Shade 1?", "red", " ".join(["red"] * 240), "green"]
    talk = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    rows = [{"messages": [*talk[:1], *talk[-1:]]}] * 9 + [{"messages": talk}]
    with pytest.raises(DataError, match=r"1 of 10 test rows leave no room for an answer of evaluate.max_tokens=4 in the model's context of 256 tokens: .*test\.jsonl:10 \(\d{3} tokens\)"):  # fmt: skip
        held_out(recipe, tmp_path / "run", rows, "prepare.max_tokens=120")
    tokens = "initialise.adapter={kind: prompt, tokens: 240}"
    with pytest.raises(DataError, match="9 of 9 test rows leave no room"):
        held_out(recipe, tmp_path / "run", rows[:9], tokens)
    held_out(recipe, tmp_path / "run", rows[:9])


@pytest.mark.parametrize(
    ("grader", "answers", "said"),
    [
        ("{kind: json_fields}", ['{"a": 1}', "red"], r"test\.jsonl:2: 'json_fields' needs a JSON object"),
        ("{kind: json_fields}", ["{}", "{}"], "'json_fields' finds nothing to grade in 2 rows"),
        ("{kind: classes, by: answer.a}", ['{"a": 1}', "red"], r"test\.jsonl:2: 'classes' .* needs a JSON object"),
        ("{kind: function, name: crooked}", ["a", "b"], "crooked fails on it: ZeroDivisionError"),
    ],
)
def test_a_grader_that_cannot_judge_the_right_answers_is_found_out_before_training(recipe, tmp_path, grader, answers, said):  # fmt: skip
    @tunesmith.grader
    def crooked(answer, example):
        return 1 / (len(answer) - len(example.gold))

    rows = [{"prompt": f"What is {answer}?", "completion": answer} for answer in answers]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=said):
        tunesmith.run(recipe, f"evaluate.graders=[{grader}]", "evaluate.slices=[]", folder=tmp_path / "run")
    assert not list((tmp_path / "run").glob("initialise-*"))


def test_without_held_out_rows_a_model_is_trained_and_not_measured(recipe, tmp_path):
    alone = ("prepare.test=null", "prepare.test_fraction=0")
    for measuring in (tunesmith.run, tunesmith.evaluate):
        with pytest.raises(ConfigError, match=r"nothing could be measured; .* end with `tunesmith finetune`"):
            measuring(recipe, *alone, folder=tmp_path / "run")
    assert not list((tmp_path / "run").glob("prepare-*"))
    assert tunesmith.prepare(recipe, *alone, folder=tmp_path / "run").metrics


def test_unwanted_answers_are_not_learnt_as_good_ones(recipe, tmp_path):
    rows = [{"prompt": f"Shade {n}?", "completion": "red", "label": n % 2 == 0} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("prepare.classes=null", "evaluate.graders=[{kind: exact}]")
    for kind in ("sft", "distill"):
        with pytest.raises(DataError, match=f"which objective {kind} would learn"):
            tunesmith.finetune(recipe, *settings, f"finetune.objective={{kind: {kind}}}", folder=tmp_path / kind)
