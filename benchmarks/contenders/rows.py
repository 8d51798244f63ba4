"""The work that all contenders of the SFT benchmark are given: the same rows, batch, rank and learning rate."""

import gzip
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "examples" / "debtags" / "train.jsonl.gz"
PAIRS = 4
"""Pairs of a step that learns preferences."""
SAMPLES, ANSWER = 8, 64
"""Answers to the one prompt of a step that learns from rewards, and their longest length in tokens."""
ROWS, BATCH, RANK, ALPHA, LEARNING_RATE, SEED = 400, 8, 16, 32, 2e-4, 0
WARM = 2
"""Steps that do not count: caches fill, shapes are compiled."""


def messages() -> list[list[dict[str, Any]]]:
    """The conversations, each ending in its answer."""
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line, _ in zip(lines, range(ROWS), strict=False)]


def preferences() -> list[tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]]:
    """Prompt, chosen and rejected answer: a row's own and that of the next row with another."""
    talks = messages()
    answers = [talk[-1] for talk in talks]
    return [
        (talk[:-1], talk[-1], next(other for other in answers[number:] + answers if other != talk[-1]))
        for number, talk in enumerate(talks)
    ]


def peak_megabytes() -> int:
    """Largest resident set of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


def gpu_peak() -> dict[str, int]:
    """Most memory that tensors took on a GPU, where one is used."""
    torch = sys.modules.get("torch")
    used = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0
    return {"gpu_peak_mb": used >> 20} if used else {}


def rate(steps: list[dict[str, float]]) -> dict[str, float]:
    """Operations of large products a second, where a contender counts them."""
    if "operations" not in steps[0]:
        return {}
    return {"operations_per_second": sum(step["operations"] for step in steps) / sum(step["seconds"] for step in steps)}


def report(steps: list[dict[str, float]], started: float, first: float, losses: list[float], **more: Any) -> None:
    """Print one JSON line: figures of the steps that count, each step {tokens, seconds, cpu}."""
    counted = steps[WARM:]
    result = {
        "tokens_per_second": sum(step["tokens"] for step in counted) / sum(step["seconds"] for step in counted),
        "tokens_per_cpu_second": sum(step["tokens"] for step in counted) / sum(step["cpu"] for step in counted),
        "peak_rss_mb": peak_megabytes(),
        **gpu_peak(),
        **rate(counted),
        "seconds_to_first_step": first - started,
        "losses": losses,
        "steps": steps,
        **more,
    }
    print("RESULT " + json.dumps(result), flush=True)


MOST = 48
"""New tokens of an answer."""
REPEATS = 3


def answered(once: Callable[[int], list[list[int]]]) -> tuple[list[float], list[float], list[list[int]]]:
    """Seconds of some repetitions after a first one that does not count, of one token and of all, and the answers' tokens."""
    answers = once(MOST)
    first, seconds = [], []
    for _ in range(REPEATS):
        for most, taken in ((1, first), (MOST, seconds)):
            start = time.perf_counter()
            answers = once(most)
            taken.append(time.perf_counter() - start)
    return first, seconds, answers


def report_generation(first: list[float], seconds: list[float], answers: list[list[int]], given: int) -> None:
    """Print one JSON line."""
    middle, made = statistics.median(seconds), sum(map(len, answers))
    start, steps = statistics.median(first), max(map(len, answers))
    result = {
        "tokens_per_second": made / middle,
        "prompt_milliseconds": 1000 * start,
        "milliseconds_per_further_step": 1000 * (middle - start) / (steps - 1),
        "seconds": seconds,
        "new_tokens": made,
        "prompt_tokens": given,
        "peak_rss_mb": peak_megabytes(),
    }
    print("RESULT " + json.dumps(result), flush=True)


MAX_LENGTH = 1024
"""Tokens of a row where data is prepared; both sides' default."""


def report_rows(seconds: float, given: int, kept: int, tokens: int) -> None:
    """Print one JSON line: rows and tokens prepared a second, imports and start included; processor time counts child processes."""
    used = os.times()
    result = {
        "tokens_per_second": tokens / seconds,
        "rows_per_second": given / seconds,
        "seconds": seconds,
        "rows": given,
        "kept": kept,
        "cpu_seconds": used.user + used.system + used.children_user + used.children_system,
        "tokens": tokens,
        "peak_rss_mb": peak_megabytes(),
        "largest_child_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    print("RESULT " + json.dumps(result), flush=True)
