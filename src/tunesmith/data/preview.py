"""A row as the model will see it, with what is learnt made visible."""

from itertools import groupby
from typing import Any

from rich.text import Text

from .example import Row, Sequence

LEARNT, CONTEXT, BREAK = "bold green", "dim", "cyan"
OPEN, CLOSE = "⟦", "⟧"


def preview(row: Row, tokenizer: Any, *, plain: bool = False) -> Text:
    """Text of every token of a row, special ones included; learnt ones are green, or stand in ⟦ ⟧ in plain mode.

    Control characters are shown as symbols, so that data cannot steer the terminal.
    """
    count = len(row.sequences)
    text = Text()
    for number, sequence in enumerate(row.sequences, 1):
        of = f" answer {number} of {count}:" if count > 1 else ":"
        learnt = int(sequence.learn.sum())
        text.append(f"{row.origin}{of} {len(sequence)} tokens, {learnt} learnt\n", BREAK)
        text.append_text(_sequence(sequence, tokenizer, plain))
        text.append("\n")
    if row.columns:
        text.append(", ".join(f"{name} = {value:g}" for name, value in row.columns.items()) + "\n", BREAK)
    return text


def _sequence(sequence: Sequence, tokenizer: Any, plain: bool) -> Text:
    text = Text()
    pairs = zip(sequence.tokens.tolist(), sequence.learn.tolist(), strict=True)
    for learnt, run in groupby(pairs, key=lambda pair: pair[1]):
        piece = visible(tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False))
        text.append(f"{OPEN}{piece}{CLOSE}" if plain and learnt else piece, LEARNT if learnt else CONTEXT)
    return text


def visible(text: str) -> str:
    """Text with control characters other than line ends and tabs as the symbols that stand for them."""
    symbols = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
    return text.translate({**symbols, 0x7F: "␡", **{code: "�" for code in range(0x80, 0xA0)}})
