"""The monitor on real text: quiet where traffic is like training, and right about the reason where it is not."""

import gzip
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tunesmith.base import Artifact, ArtifactError, Events, Output
from tunesmith.data.example import Example
from tunesmith.serving.log import Record, RequestLog
from tunesmith.serving.settings import RequestLogging
from tunesmith.stages.drift import judge, lengths, share, vocabulary
from tunesmith.stages.monitor import Monitor, _expected, monitor

ROOT = Path(__file__).parents[2]
OTHER = (
    "Write a polite letter to the landlord about the broken heating and ask for a date on which it will be repaired. ",
    "Plan three vegetarian dinners for a family of four, with a shopping list sorted by the aisles of a supermarket. ",
    "My flight was cancelled yesterday evening; explain to me which compensation I can claim and how. ",
    "Summarise the match in two sentences: the home team led until the last minute and lost on penalties. ",
    "Translate the wedding speech into French and keep the joke about the bicycle and the lake. ",
)


def read(name: str) -> list[Example]:
    with gzip.open(ROOT / "examples" / "debtags" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        talks = [json.loads(line)["messages"] for line in file]
    return [Example(f"{name}:{number + 1}", tuple(talk[:-1]), ((talk[-1],),)) for number, talk in enumerate(talks)]


TRAIN, TEST = read("train")[:800], read("test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("prepared")
    return learnt(folder, TRAIN)


def learnt(folder: Path, examples: list[Example]) -> Artifact:
    """What the stage `prepare` left of some rows, as far as it matters here."""
    (folder / "train.jsonl").write_text("".join(json.dumps(example.to_json()) + "\n" for example in examples))
    (folder / "summary.json").write_text("{}")
    return Artifact(folder, {})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Artifact:
    """An evaluation in which 3 of 100 answers of the tuned model were no JSON."""
    folder = tmp_path_factory.mktemp("evaluated")
    given = [example.gold if number % 100 >= 3 else "no idea" for number, example in enumerate(TEST)]
    (folder / "answers.jsonl").write_text(
        "".join(json.dumps({"answers": {"base": "?", "tuned": text}}) + "\n" for text in given)
    )
    return Artifact(folder, {})


def traffic(seed: int, count: int = 300) -> list[Record]:
    """Requests drawn from the test rows, some more than once, answered as they should be."""
    return [served(example, 0.2 + draw / 10) for draw, example in enumerate(random.Random(seed).choices(TEST, k=count))]


def served(example: Example, seconds: float) -> Record:
    prompt, answer = example.prompt[0]["content"], example.gold
    valid = answer.startswith("{")
    return Record(
        "chat",
        "tuned",
        200,
        time.time(),
        min(seconds, 2.0),
        0.1,
        prompt,
        answer,
        len(prompt),
        len(answer),
        50,
        9,
        "stop",
        valid,
    )


def said(record: Record, answer: str) -> Record:
    return replace(record, answer=answer, answer_characters=len(answer), is_json=answer.startswith("{"))


def asked(record: Record, prompt: str) -> Record:
    return replace(record, prompt=prompt, prompt_characters=len(prompt))


def watch(
    folder: Path, prepared: Artifact, evaluated: Artifact | None, records: list[Record], **spec
) -> tuple[list[str], dict]:
    """Names of the checks that alerted, and the whole report."""
    folder.mkdir(exist_ok=True, parents=True)
    keeping, artifact = spec.pop("keeping", RequestLogging()), spec.pop("artifact", None)
    log = RequestLog(folder / "requests.sqlite", keeping, artifact)
    for record in records:
        log.write(record)
    log.close()
    out = Output(folder, Events(folder / "events.jsonl"))
    monitor(Monitor(**spec), prepared, evaluated, out=out, log=str(folder / "requests.sqlite"), artifact=artifact)
    report = json.loads((folder / "report.json").read_text())
    assert out.metrics["alerts"] == report["alerts"]
    return [alert.partition(":")[0] for alert in report["alerts"]], report


def test_traffic_like_training_does_not_alert(tmp_path, prepared, evaluated):
    quiet = 0
    for seed in range(20):
        alerts, report = watch(tmp_path / str(seed), prepared, evaluated, traffic(seed), p95_seconds=3)
        assert sum(check["p"] is not None for check in report["checks"]) == 6
        quiet += not alerts
    assert quiet >= 19


def longer(record: Record) -> Record:
    """The same words, twice as many."""
    return asked(record, f"{record.prompt} {record.prompt}")


def other(record: Record, number: int) -> Record:
    """Another topic at the same length."""
    mixed = "".join(random.Random(number).choices(OTHER, k=20)) + str(number)
    return asked(record, mixed[-record.prompt_characters :])


SHIFTS = {
    "prompt length": lambda record, number: longer(record),
    "vocabulary": lambda record, number: other(record, number),
    "answer length": lambda record, number: said(record, json.dumps({"role": "x" * 90})),
    "valid JSON": lambda record, number: said(record, record.answer.replace("{", "<")) if number % 5 == 0 else record,
    "errors": lambda record, number: (
        replace(record, status=500, answer=None, error="failed") if number % 10 == 0 else record
    ),
    "latency": lambda record, number: replace(record, seconds=9.0) if number % 5 == 0 else record,
}


@pytest.mark.parametrize("reason", SHIFTS)
def test_each_shift_alerts_for_its_own_reason(tmp_path, prepared, evaluated, reason):
    records = [SHIFTS[reason](record, number) for number, record in enumerate(traffic(1))]
    alerts, _ = watch(tmp_path, prepared, evaluated, records, p95_seconds=3)
    assert alerts == [reason]
    assert f"- {reason}:" in (tmp_path / "report.md").read_text()


def test_without_an_evaluation_training_answers_are_expected(tmp_path, prepared):
    records = [SHIFTS["valid JSON"](record, number) for number, record in enumerate(traffic(2))]
    assert watch(tmp_path / "broken", prepared, None, records)[0] == ["valid JSON"]
    assert watch(tmp_path / "whole", prepared, None, traffic(2))[0] == []


def test_a_few_requests_are_not_judged(tmp_path, prepared):
    broken = [said(record, "no") for record in traffic(3, count=99)]
    alerts, report = watch(tmp_path, prepared, None, broken)
    assert alerts == []
    assert not report["judged"]
    assert "99 requests, 100 are needed" in (tmp_path / "report.md").read_text()


def test_no_requests_make_an_empty_report(tmp_path, prepared):
    alerts, report = watch(tmp_path, prepared, None, [])
    assert (alerts, report["requests"], report["judged"]) == ([], 0, False)


def test_other_models_and_clients_that_left_do_not_count(tmp_path, prepared):
    others = [replace(record, model="base", status=500) for record in traffic(4)]
    left = [replace(record, status=499, answer=None) for record in traffic(5)]
    alerts, report = watch(tmp_path, prepared, None, [*others, *left, *traffic(6)])
    assert alerts == []
    assert report["answered"] == 300
    assert report["client_left"] == 300
    assert watch(tmp_path / "all", prepared, None, [*others, *traffic(6)], model=None)[0] == ["errors"]


def test_what_was_redacted_is_not_taken_for_drift(tmp_path, prepared):
    keeping = RequestLogging(redact=("Description", r"\b[a-m]\w*"))  # half of all words
    alerts, _ = watch(tmp_path, prepared, None, traffic(7), keeping=keeping)
    assert alerts == []


def test_a_log_without_text_is_judged_by_its_figures(tmp_path, prepared):
    alerts, report = watch(
        tmp_path, prepared, None, [longer(record) for record in traffic(8)], keeping=RequestLogging(text=False)
    )
    assert alerts == ["prompt length"]
    vocabulary_says = next(check["says"] for check in report["checks"] if check["name"] == "vocabulary")
    assert "keeps no text" in vocabulary_says


def test_a_missing_log_is_one_line(tmp_path, prepared):
    out = Output(tmp_path, Events(tmp_path / "events.jsonl"))
    with pytest.raises(ArtifactError, match="missing"):
        monitor(Monitor(), prepared, None, out=out, log=str(tmp_path / "none.sqlite"))


def test_a_large_log_does_not_alert_on_nothing():
    generator = np.random.default_rng(0)
    reference, seen = generator.normal(500, 100, 100_000), generator.normal(505, 100, 100_000)
    check = lengths("prompt length", reference.tolist(), seen.tolist(), limit=0.2)
    assert check.p < 1e-6  # significant,
    assert not judge([check], alpha=0.01)[0].alert  # and without meaning


def test_a_share_just_over_its_limit_needs_evidence():
    few = share("errors", 3, 100, 0.02, "")
    many = share("errors", 3_000, 100_000, 0.02, "")
    assert [check.alert for check in judge([few, replace(many, name="more")], alpha=0.01)] == [False, True]


def test_many_checks_are_corrected_for_their_number():
    checks = [share(f"check {number}", 5, 100, 0.02, "") for number in range(1)]
    alone = judge(checks, alpha=0.06)[0]
    among = judge([*checks, *(share(f"fine {number}", 1, 100, 0.02, "") for number in range(5))], alpha=0.06)[0]
    assert alone.alert
    assert not among.alert
    assert among.adjusted > among.p


def test_one_prompt_asked_a_thousand_times_is_not_learnt_by_heart():
    texts = [example.prompt[0]["content"] for example in TRAIN[:400]]
    repeated = [example.prompt[0]["content"] for example in TEST[:40]] * 25
    check = vocabulary("vocabulary", texts, repeated, limit=0.7, seed=0)
    assert check.effect < 0.7


def test_where_the_evaluation_asked_for_no_answers_those_of_training_are_expected(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"answers": {}}\n' * 3)
    assert _expected(TRAIN[:2], Artifact(tmp_path, {})) == [example.gold for example in TRAIN[:2]]


def test_conversations_arrive_as_a_request_for_each_turn(tmp_path):
    """Three turns each, of which a client sends the first alone, then the first two, then all."""
    talks = []
    for number, three in enumerate(zip(TRAIN[:600:3], TRAIN[1:600:3], TRAIN[2:600:3], strict=True)):
        turns = [turn for one in three for turn in (one.prompt[-1], {"role": "assistant", "content": one.gold})]
        talks.append(Example(f"talk:{number}", (turns[0],), (tuple(turns[1:]),)))
    records = []
    for talk in random.Random(0).sample(talks, 80):
        said_before = [*talk.prompt, *talk.answers[0]]
        for place in (1, 3, 5):
            prompt = "\n".join(turn["content"] for turn in said_before[:place])
            records.append(said(asked(served(TRAIN[0], 0.5), prompt), said_before[place]["content"]))
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps({"answers": {"tuned": "{}"}}) + "\n" for _ in range(9)))
    alerts, _ = watch(tmp_path / "log", learnt(tmp_path, talks), Artifact(tmp_path, {}), records)
    assert alerts == []


def test_what_another_model_answered_does_not_count(tmp_path, prepared, evaluated):
    """Whenever it did: before, in between while this one stood back for it, or when nobody noted what was served."""
    broken = [said(record, "no") for record in traffic(9)]
    watch(tmp_path, prepared, evaluated, broken[:20])
    watch(tmp_path, prepared, evaluated, traffic(10, 150), artifact="deploy-a")
    watch(tmp_path, prepared, evaluated, broken, artifact="deploy-b")
    alerts, report = watch(tmp_path, prepared, evaluated, traffic(11, 50), artifact="deploy-a")
    assert (alerts, report["requests"], report["of_another"], report["of_unknown"]) == ([], 200, 300, 20)
    told = (tmp_path / "report.md").read_text()
    assert "300 more were answered while another model of this run was served" in told
    assert "20 more are of a log that did not note yet" in told


def test_calls_that_a_template_spells_are_not_compared_with_nothing(tmp_path):
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    talks = [replace(one, answers=((call, {"role": "tool", "content": "x"}, *one.answers[0]),)) for one in TRAIN[:60]]
    assert _expected(talks, None) == []
    records = [said(served(TRAIN[0], 0.5), "<tool_call>{}</tool_call>" * 4) for _ in range(120)]
    alerts, report = watch(tmp_path / "log", learnt(tmp_path, talks), None, records)
    assert not {"answer length", "valid JSON"} & set(alerts)
    assert sum("answers call tools" in check["says"] for check in report["checks"]) == 2
