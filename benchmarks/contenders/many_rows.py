"""Many rows for benchmarks of data preparation: descriptions put together anew from sentences of the quickstart's data."""

import gzip
import json
import random
from pathlib import Path

from rows import DATA

LETTERS = 950
"""Characters of a row's sentences: with instruction and answer some 300 tokens."""
SYLLABLES = [head + tail for head in "bdfgklmnprstvz" for tail in ("a", "e", "i", "o", "u", "an", "el", "or")]
"""What words are made of that stand in one row only, as names do: one behind each sentence, a twentieth of all words."""


def write_rows(path: Path, count: int) -> None:
    """Write `count` conversations as JSON lines, each with sentences of its own choice; the same bytes each time."""
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        talks = [json.loads(line)["messages"] for line in lines]
    sentences = sorted({part for talk in talks for part in described(talk[0]["content"])})
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked, answer = talks[number % len(talks)]
            length, chosen = 0, []
            while length < LETTERS:
                chosen += [draw.choice(sentences), "".join(draw.choices(SYLLABLES, k=4))]
                length += len(chosen[-2]) + len(chosen[-1])
            instruction = asked["content"].partition("\n")[0]
            text = f"{instruction}\nName: package-{number}\nDescription: {' '.join(chosen)}"
            messages = [{"role": "user", "content": text}, answer]
            file.write(json.dumps({"id": number, "messages": messages}, ensure_ascii=False) + "\n")


def described(prompt: str) -> list[str]:
    """The sentences of a prompt's description that are long enough to tell rows apart."""
    description = prompt.partition("Description: ")[2].partition("\n")[0]
    return [part for part in description.split(". ") if len(part) > 40]
