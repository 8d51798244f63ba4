"""Monitor: compares the requests that the server logged with what the model was trained and evaluated on."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tunesmith.base import Artifact, Output, Spec, Stage
from tunesmith.base.files import write_atomic, write_json
from tunesmith.data.example import Example
from tunesmith.data.prepared import load_examples
from tunesmith.serving.log import CLIENT_LEFT, Record, Redactor, count_others, is_json, read_keeping, read_log

from .drift import Check, judge, lengths, share, unjudged, vocabulary

JSON_TASK = 0.95
"""Share of training answers that are JSON from which on the task is to answer in JSON."""


CALLS = "the training answers call tools, which are spelled otherwise in the log"
"""Why answers cannot be compared."""


class Monitor(Spec):
    """When served traffic counts as different from what the model was made for."""

    model: str | None = "tuned"
    """Requests to the model of this name are judged; null takes every request."""
    newest: int = Field(10_000, ge=1)
    """At most so many requests, the newest ones."""
    minimum: int = Field(100, ge=20)
    """Requests needed before anything is judged."""
    alpha: float = Field(0.01, gt=0, lt=1)
    """Share of false alerts among alerts that is accepted (Benjamini and Hochberg)."""
    prompt_length: float = Field(0.2, gt=0, le=1)
    """Gap between the distributions of prompt lengths that matters (Kolmogorov and Smirnov's distance)."""
    vocabulary: float = Field(0.7, gt=0.5, le=1)
    """How well a classifier may tell requests from training prompts (area under the ROC curve) before that matters."""
    answer_length: float = Field(0.3, gt=0, le=1)
    """Gap between the distributions of answer lengths that matters."""
    json_drop: float = Field(0.05, ge=0, le=1)
    """How far the share of valid JSON may fall below the evaluation's; judged where training answers are JSON."""
    error_rate: float = Field(0.02, ge=0, le=1)
    """Share of requests that may fail."""
    p95_seconds: float | None = Field(None, gt=0)
    """Seconds within which 95 of 100 answers must be complete; null only reports latency."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the classifier's folds and samples."""


def monitor(
    spec: Monitor, prepared: Artifact, evaluated: Artifact | None = None, *, out: Output, log: str, artifact: str | None = None
) -> None:  # fmt: skip
    """Write `report.json` and `report.md`; the metric `alerts` holds a sentence for everything that needs a person.

    Args:
        spec: the limits.
        prepared: what was learnt from.
        evaluated: what the tuned model answered to the test rows.
        out: where the report goes.
        log: the request log.
        artifact: folder name of what was deployed; what was answered while another was served does not count. None takes all.

    Raises:
        ArtifactError: `log` is missing or is not a request log.
    """
    records = list(read_log(Path(log), model=spec.model, artifact=artifact, newest=spec.newest))
    others = (0, 0) if artifact is None else count_others(Path(log), artifact, spec.model)
    asked = [record for record in records if record.status != CLIENT_LEFT]
    answered = [record for record in asked if record.status == 200]
    examples = load_examples(prepared.path, "train")
    expected = _expected(examples, evaluated)
    redact = Redactor(read_keeping(Path(log)))
    checks = [
        _prompt_length(spec, examples, answered),
        _vocabulary(spec, examples, answered, redact),
        _answer_length(spec, expected, answered),
        _json(spec, examples, expected, answered),
        _errors(spec, asked),
        _latency(spec, answered),
    ]
    judged = judge(checks, spec.alpha)
    report = {**_report(judged, records, answered), **dict(zip(("of_another", "of_unknown"), others, strict=True))}
    write_json(out / "report.json", report)
    write_atomic(out / "report.md", _readable(report, judged))
    out.metrics.update(
        {name: report[name] for name in ("requests", "answered", "judged", "alerts", "of_another", "of_unknown")}
    )


def _expected(examples: Sequence[Example], evaluated: Artifact | None) -> list[str]:
    """Answers as they should look: those of the tuned model in the evaluation, where it was asked for any and they are all that clients ask for; else
    those it was trained on, if none of them calls a tool, which the template spells."""
    learnt = [answer for example in examples for _, answer in _exchanges(example)]
    calls = any(turn.get("tool_calls") for example in examples for answer in example.answers[:1] for turn in answer)
    if evaluated is None or len(learnt) > len(examples):
        return [] if calls else learnt
    with (evaluated / "answers.jsonl").open(encoding="utf-8") as file:
        given = [json.loads(line)["answers"] for line in file]
    return [each["tuned"] for each in given if "tuned" in each] or ([] if calls else learnt)


def _exchanges(example: Example) -> Iterator[tuple[str, str]]:
    """What a client asks on its way through a conversation, in the form that the server logs, and what it is answered: once for each turn of the assistant."""
    if example.text is not None:
        yield "", example.text
    answer = example.answers[0] if example.answers else ()
    for place, message in enumerate(answer):
        if message["role"] == "assistant":
            before = (*example.prompt, *answer[:place])
            yield "\n".join(str(one.get("content") or "") for one in before), str(message.get("content") or "")


def _prompts(examples: Sequence[Example]) -> list[str]:
    """What is asked, of rows that ask anything."""
    return [asked for example in examples if example.prompt for asked, _ in _exchanges(example)]


def _too_few(spec: Monitor, name: str, records: Sequence[Record]) -> Check | None:
    if len(records) >= spec.minimum:
        return None
    return unjudged(name, len(records), f"{len(records)} requests, {spec.minimum} are needed")


def _prompt_length(spec: Monitor, examples: Sequence[Example], answered: Sequence[Record]) -> Check:
    name = "prompt length"
    reference = [len(asked) for asked in _prompts(examples)]
    if not reference:
        return unjudged(name, len(answered), "the training rows have no prompts")
    few = _too_few(spec, name, answered)
    return few or lengths(name, reference, [record.prompt_characters for record in answered], spec.prompt_length)


def _vocabulary(spec: Monitor, examples: Sequence[Example], answered: Sequence[Record], redact: Redactor) -> Check:
    name = "vocabulary"
    texts = [record.prompt for record in answered if record.prompt is not None]
    reference = [redact(asked) for asked in _prompts(examples)]
    if not reference:
        return unjudged(name, len(texts), "the training rows have no prompts")
    if answered and not texts:
        return unjudged(name, 0, "the log keeps no text (serve.log.text is false)")
    return _too_few(spec, name, answered) or vocabulary(name, reference, texts, spec.vocabulary, spec.seed)


def _answer_length(spec: Monitor, expected: Sequence[str], answered: Sequence[Record]) -> Check:
    name = "answer length"
    if not expected:
        return unjudged(name, len(answered), CALLS)
    seen = [record.answer_characters for record in answered]
    return _too_few(spec, name, answered) or lengths(name, [len(text) for text in expected], seen, spec.answer_length)


def _json(spec: Monitor, examples: Sequence[Example], expected: Sequence[str], answered: Sequence[Record]) -> Check:
    name = "valid JSON"
    if not expected:
        return unjudged(name, len(answered), CALLS)
    if np.mean([is_json(example.gold) for example in examples]) < JSON_TASK:
        return unjudged(name, len(answered), "the training answers are not JSON")
    few = _too_few(spec, name, answered)
    if few:
        return few
    before = float(np.mean([is_json(text) for text in expected]))
    broken = sum(not record.is_json for record in answered)
    valid = 1 - broken / len(answered)
    says = f"{valid:.1%} of answers are valid JSON, expected {before:.1%} (at most {spec.json_drop:.1%} less)"
    return share(name, broken, len(answered), 1 - before + spec.json_drop, says)


def _errors(spec: Monitor, asked: Sequence[Record]) -> Check:
    name = "errors"
    few = _too_few(spec, name, asked)
    if few:
        return few
    failed = Counter(record.status for record in asked if record.status != 200)
    count = failed.total()
    kinds = ", ".join(f"status {status}: {number}" for status, number in failed.most_common())
    says = f"{count / len(asked):.1%} of requests failed, allowed are {spec.error_rate:.1%}" + (
        f" ({kinds})" if kinds else ""
    )
    return share(name, count, len(asked), spec.error_rate, says)


def _latency(spec: Monitor, answered: Sequence[Record]) -> Check:
    name = "latency"
    if spec.p95_seconds is None:
        return unjudged(name, len(answered), "no limit was set (p95_seconds)")
    few = _too_few(spec, name, answered)
    if few:
        return few
    slow = sum(record.seconds > spec.p95_seconds for record in answered)
    says = f"{slow / len(answered):.1%} of answers took longer than {spec.p95_seconds:g} seconds, allowed are 5 %"
    return share(name, slow, len(answered), 0.05, says)


def _report(checks: Sequence[Check], records: Sequence[Record], answered: Sequence[Record]) -> dict[str, Any]:
    first = [record.first_seconds for record in answered if record.first_seconds is not None]
    return {
        "requests": len(records),
        "answered": len(answered),
        "client_left": sum(record.status == CLIENT_LEFT for record in records),
        "from": records[0].time if records else None,
        "to": records[-1].time if records else None,
        "judged": any(check.p is not None for check in checks),
        "alerts": [f"{check.name}: {check.says}" for check in checks if check.alert],
        "seconds": _percentiles([record.seconds for record in answered]),
        "first_token_seconds": _percentiles(first),
        "prompt_tokens": sum(record.prompt_tokens for record in answered),
        "answer_tokens": sum(record.answer_tokens for record in answered),
        "checks": [check.to_json() for check in checks],
    }


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    return {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95))} if values else None


def _readable(report: dict[str, Any], checks: Sequence[Check]) -> str:
    """The report for a person, in Markdown."""
    lines = ["# What the served model is asked", ""]
    lines.append(
        f"{report['requests']} requests, {report['answered']} answered, {report['client_left']} not waited for."
    )
    if report["from"] is not None:
        lines.append(f"From {_moment(report['from'])} to {_moment(report['to'])}.")
    if report["of_another"]:
        lines.append(
            f"{report['of_another']} more were answered while another model of this run was served, and are not looked at."
        )
    if report["of_unknown"]:
        lines.append(
            f"{report['of_unknown']} more are of a log that did not note yet which model was served, and are not looked at."
        )
    for name, title in (("seconds", "Whole answer"), ("first_token_seconds", "First token")):
        if report[name]:
            lines.append(
                f"{title}: half within {report[name]['p50']:.2f} s, 95 of 100 within {report[name]['p95']:.2f} s."
            )
    lines += ["", "## Alerts", ""]
    lines += [f"- {alert}" for alert in report["alerts"]] or [
        "None." if report["judged"] else "None: nothing could be judged yet."
    ]
    lines += ["", "## Checks", "", "| check | result | requests | effect | matters from | adjusted p | finding |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [_line(check) for check in checks]
    return "\n".join(lines) + "\n"


def _line(check: Check) -> str:
    result = "not judged" if check.p is None else "ALERT" if check.alert else "fine"
    figures = ["" if value is None else f"{value:.3g}" for value in (check.effect, check.limit, check.adjusted)]
    return f"| {check.name} | {result} | {check.n} | {' | '.join(figures)} | {check.says.replace('|', chr(92) + '|')} |"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


STAGE = Stage("monitor", 2, monitor)
