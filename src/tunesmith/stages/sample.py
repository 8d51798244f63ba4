"""Sample: a model's own answers to the training prompts, those worth learning from kept as rows.

The best ones are rejection sampling, or best of n (RAFT, Dong et al., 2023, arXiv:2304.06767; Yuan et al., 2023, arXiv:2308.01825); pairs of a right and a wrong one are what
preference objectives learn from.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tunesmith.base import Artifact, DataError, Output, Stage
from tunesmith.base.files import digest, write_atomic, write_json
from tunesmith.data.example import Example
from tunesmith.data.formats import FORMATS
from tunesmith.data.prepared import load_examples, rendered_on
from tunesmith.grading.exact import Exact
from tunesmith.kernels.memory import Peak
from tunesmith.models.generate import Completion, Sampling, generate
from tunesmith.models.load import Loaded, Precision, load, served
from tunesmith.training.rollouts import Reward, Tries, seed_of

from .judge import merge

TOGETHER = 32
"""Prompts that are answered, and written down, together; what a crash costs at most."""
READ = {name for form in FORMATS for name in (*form.fields, *form.optional)}
"""Fields that say what a row is: what else was beside the example must not be taken for one."""


class Sample(Tries):
    """How a model's own answers become rows to learn from."""

    keep: Literal["best", "pairs"] = "best"
    """Rows to make: each prompt with its best answer (`best`), or with a chosen and a rejected one (`pairs`)."""
    system: Literal["tuned", "base"] = "tuned"
    """Who answers: the model as this run tuned it, or as it was before."""
    rewards: tuple[Reward, ...] = Field((Reward(grader=Exact()),), min_length=1)
    """What an answer earns is the sum of these."""
    temperature: float = Field(1.0, gt=0)
    """1 samples from the model's own distribution; less makes answers alike."""
    rows: int | None = Field(None, ge=1)
    """Most training rows whose prompts are answered; null takes all."""
    at_least: float = 1.0
    """What an answer has to earn to be right, and to be kept as the best."""
    chosen: Literal["gold", "best"] = "gold"
    """The better answer of a pair: the row's own, or the best sampled one, if that is right."""
    rejected: Literal["worst", "likeliest"] = "worst"
    """The worse answer of a pair, among those that earn less than the chosen one: what earns least, or what the model finds likeliest."""
    most: int = Field(1, ge=1)
    """Rows of a prompt at most, no answer twice."""

    def kept(self, example: Example, tries: list["Try"], gold: float) -> list[dict[str, Any]]:
        """Rows of one prompt, whose own answer earns `gold`; none where no answer is good enough, or none is wrong."""
        told = [each for each in tries if each.text]  # nothing said is nothing to learn from
        best = sorted((each for each in told if each.whole and each.reward >= self.at_least), key=_merit, reverse=True)
        asked = {**_beside(example), "prompt": list(example.asked), **({"tools": list(example.tools)} if example.tools else {})}  # fmt: skip
        if self.keep == "best":
            return [{**asked, "completion": _said(each.text), "reward": each.reward} for each in _different(best)[: self.most]]  # fmt: skip
        if self.chosen == "gold":
            chosen, earned = list(example.answers[0][example.turn :]), gold
        elif best:
            chosen, earned = _said(best[0].text), best[0].reward
        else:
            return []
        wrong = sorted((each for each in told if each.reward < earned), key=self._fault)
        return [
            {**asked, "chosen": chosen, "rejected": _said(each.text), "reward_chosen": earned, "reward_rejected": each.reward}
            for each in _different(wrong)[: self.most]
        ]  # fmt: skip

    def _fault(self, each: "Try") -> tuple[float, float]:
        """What comes first is rejected first."""
        return (each.reward, -each.logp) if self.rejected == "worst" else (-each.logp, each.reward)


@dataclass(frozen=True)
class Try:
    """One sampled answer."""

    text: str
    tokens: int
    whole: bool
    """Whether it ended by itself."""
    logp: float
    """Its log-probability under the model, in nats."""
    reward: float


def _merit(each: Try) -> tuple[float, float]:
    """More is better: what it earns, then how likely the model finds it."""
    return each.reward, each.logp


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _different(tries: list[Try]) -> list[Try]:
    """The first of those that say the same."""
    found: dict[str, Try] = {}
    for each in tries:
        found.setdefault(each.text, each)
    return list(found.values())


def _beside(example: Example) -> dict[str, Any]:
    """What else a row carries: where it came from, and the example's other fields."""
    meta = {name: value for name, value in example.meta.items() if name not in READ}
    return {**meta, "origin": example.origin}


def sample(
    spec: Sample, prepared: Artifact, finetuned: Artifact | None = None, pruned: Artifact | None = None, *, out: Output, model: str,
    precision: Precision, adapter: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    """Write `rows.jsonl` in a form that prepare reads, `answers.jsonl` with every answer and what it earned, and `summary.json`.

    Raises:
        DataError: a row has no prompt, or says only whether its answer is wanted; or nothing was worth keeping.
    """
    examples = load_examples(prepared.path, "train", spec.rows)
    _check(spec, examples)
    peak = Peak()
    loaded = load(model, served(precision), today=rendered_on(prepared.path))
    if finetuned is not None:
        merge(loaded, adapter, finetuned, precision, pruned)
    answers = _answered(spec, loaded, examples, seed, out)
    rows = [row for each in zip(examples, answers, _golds(spec, examples), strict=True) for row in spec.kept(*each)]
    if not rows:
        raise DataError(_nothing(spec, answers))
    write_atomic(out / "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    prompts = [len(prompt) for prompt in _prompts(loaded, examples)]
    out.metrics.update({**_summary(spec, answers), "kept": len(rows), "prompt_tokens": sum(prompts), "peak_memory_mb": peak.megabytes})  # fmt: skip
    out.metrics["seconds"] = round(sum(event["seconds"] for event in _parts(out)), 1)
    write_json(out / "summary.json", out.metrics)


def _check(spec: Sample, examples: list[Example]) -> None:
    for example in examples:
        if example.text is not None:
            raise DataError(
                f"{example.origin}: plain text has no prompt to answer; sample from rows of prompt and answer"
            )
        if spec.keep == "pairs" and spec.chosen == "gold" and "label" in example.columns:
            raise DataError(
                f"{example.origin}: its answer has a label and need not be the better one; set sample.chosen=best"
            )


def _golds(spec: Sample, examples: list[Example]) -> list[float]:
    """What each row's own answer earns, where that is asked."""
    if spec.keep == "best" or spec.chosen == "best":
        return [0.0] * len(examples)
    return [sum(paid) for paid in spec.earned([example.gold for example in examples], examples)]


def _prompts(loaded: Loaded, examples: list[Example]) -> list[list[int]]:
    renderer = loaded.renderer()
    return [renderer.prompt(example.asked, example.tools) for example in examples]


def _answered(spec: Sample, loaded: Loaded, examples: list[Example], seed: int, out: Output) -> list[list[Try]]:
    """Every prompt's answers; those that an interrupted attempt wrote down are not sampled again."""
    path = out / "answers.jsonl"
    found = list(_finished(path, out))
    write_atomic(path, "".join(_line(*pair) for pair in zip(examples, found, strict=False)))
    for start in range(len(found), len(examples), TOGETHER):
        began, part = time.monotonic(), examples[start : start + TOGETHER]
        made = _sampled(spec, loaded, part, start, seed)
        text = "".join(_line(*pair) for pair in zip(part, made, strict=True))
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        found += made
        reward = float(np.mean([each.reward for tries in made for each in tries]))
        seconds = round(time.monotonic() - began, 4)
        out.events.write(
            "sampled", first=start, prompts=len(found), of=len(examples), reward=reward, seconds=seconds, digest=digest(text)
        )  # fmt: skip
    return found


def _sampled(spec: Sample, loaded: Loaded, examples: list[Example], start: int, seed: int) -> list[list[Try]]:
    """Answers to some prompts, the first of which is number `start`; what is drawn depends on (seed, prompt, sample)."""
    count = spec.samples
    samplings = [
        Sampling(spec.max_tokens, spec.temperature, seed=seed_of(seed, start + place, number), logprobs=True)
        for place in range(len(examples))
        for number in range(count)
    ]
    repeated = [prompt for prompt in _prompts(loaded, examples) for _ in range(count)]
    said = generate(loaded, repeated, samplings)
    asked = [example for example in examples for _ in range(count)]
    earned = spec.earned([each.text.strip() for each in said], asked)
    tries = [_try(*pair) for pair in zip(said, earned, strict=True)]
    return [tries[first : first + count] for first in range(0, len(tries), count)]


def _try(said: Completion, earned: list[float]) -> Try:
    return Try(said.text.strip(), len(said.tokens), said.finish == "stop", sum(said.logprobs), sum(earned))


def _line(example: Example, tries: list[Try]) -> str:
    return json.dumps({"origin": example.origin, "answers": [vars(each) for each in tries]}, ensure_ascii=False) + "\n"


def _finished(path: Path, out: Output) -> Iterator[list[Try]]:
    """What an interrupted attempt wrote, up to the part that it was writing, or one that is not as it was written."""
    noted = {event["first"]: event.get("digest") for event in _parts(out)}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [f"{line}\n" for line in text.split("\n")[:-1]]
    for start in range(0, len(lines), TOGETHER):
        part = lines[start : start + TOGETHER]
        if start not in noted:
            return
        if digest("".join(part)) != noted[start]:
            out.events.write("damaged", reason=f"{path}: line {start + 1:,} and on differ from what was written; they are made again")  # fmt: skip
            return
        yield from ([Try(**each) for each in json.loads(line)["answers"]] for line in part)


def _parts(out: Output) -> list[dict[str, Any]]:
    """The last event of every part of the prompts."""
    return list({event["first"]: event for event in out.events.read("sampled")}.values())


def _summary(spec: Sample, answers: list[list[Try]]) -> dict[str, Any]:
    """What the answers were like."""
    reward_PN = np.array([[each.reward for each in tries] for tries in answers])
    right_PN = reward_PN >= spec.at_least
    flat = [each for tries in answers for each in tries]
    return {
        "prompts": len(answers),
        "answers": len(flat),
        "reward": float(reward_PN.mean()),
        "best_reward": float(reward_PN.max(1).mean()),
        "pass_at_1": float(right_PN.mean()),
        "pass_at_n": float(right_PN.any(1).mean()),
        "n": spec.samples,
        "finished": float(np.mean([each.whole for each in flat])),
        "answer_tokens": sum(each.tokens for each in flat),
    }


def _nothing(spec: Sample, answers: list[list[Try]]) -> str:
    """Why no row was kept, and what would help."""
    found = _summary(spec, answers)
    about = f"sample: none of {found['answers']:,} answers to {found['prompts']:,} prompts"
    if spec.keep == "pairs" and (spec.chosen == "gold" or found["pass_at_1"]):
        return f"{about} earns less than the chosen one; raise sample.samples, or take harder prompts"
    return (
        f"{about} both ended by itself and earned {spec.at_least:g}, they earn {found['reward']:.2f} in the mean and end by themselves in "
        f"{100 * found['finished']:.0f} % of cases; lower sample.at_least, raise sample.samples or sample.max_tokens, or tune on examples first"
    )


STAGE = Stage("sample", 2, sample)
