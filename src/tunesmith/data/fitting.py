"""Rows that fit into so many tokens: a conversation loses its end, plain text goes on in the next row."""

from dataclasses import replace

from tunesmith.base import DataError

from .example import Row


def cut(row: Row, longest: int) -> Row:
    """A row with every sequence cut to `longest` tokens.

    Raises:
        DataError: nothing to learn is left, or answers became the same.
    """
    if len(row) <= longest:
        return row
    cut = tuple(replace(part, tokens=part.tokens[:longest], learn=part.learn[:longest]) for part in row.sequences)
    if not all(part.learn.any() for part in cut):
        raise DataError(
            f"nothing to learn within max_tokens: the answer begins behind token {longest:,} of {len(row):,}"
        )
    if len({part.tokens.tobytes() for part in cut}) < len(cut):
        raise DataError(
            f"nothing to prefer within max_tokens: the first {longest:,} tokens of the answers are the same"
        )
    return replace(row, sequences=cut)


def windows(row: Row, longest: int, overlap: int) -> list[Row]:
    """A row of one long sequence as rows of at most `longest` tokens; each token is learnt in one of them, behind at least `overlap` others."""
    (whole,) = row.sequences
    found, start = [], 0
    while start == 0 or start + overlap < len(whole):
        part = slice(start, start + longest)
        learn = whole.learn[part].copy()
        learn[: overlap if start else 0] = False
        found.append(replace(row, sequences=(replace(whole, tokens=whole.tokens[part], learn=learn),)))
        start += longest - overlap
    return found
