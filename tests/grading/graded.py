"""A row as graders get it."""

import json

from tunesmith.data.example import Example


def example(gold: object, prompt: str = "?", **meta: object) -> Example:
    """With an answer in words, or in JSON."""
    text = gold if isinstance(gold, str) else json.dumps(gold)
    answer = {"role": "assistant", "content": text}
    return Example("t:1", ({"role": "user", "content": prompt},), ((answer,),), meta=meta)
