"""A row as graders get it, and the function that judges it where none is named."""

import json

from tunesmith.data.example import Example
from tunesmith.grading.function import grader


def example(gold: object, prompt: str = "?", **meta: object) -> Example:
    """With an answer in words, or in JSON."""
    text = gold if isinstance(gold, str) else json.dumps(gold)
    answer = {"role": "assistant", "content": text}
    return Example("t:1", ({"role": "user", "content": prompt},), ((answer,),), meta=meta)


@grader
def judge(answer: str, example: Example) -> float:
    """What the grader of functions is by default."""
    return float(answer == example.gold)
