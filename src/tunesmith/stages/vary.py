"""What `--vary` says: settings of a recipe, and the values that each is to take."""

import re
from collections.abc import Iterator
from itertools import product

from tunesmith.base import ConfigError


def settings_of(text: str) -> list[tuple[str, ...]]:
    """The variants that one `--vary` stands for: `a.b=1,2` are two, `a.b=1 c.d=3` is one, `a.b=1,2 c.d=3,4` are four.

    Raises:
        ConfigError: it is no assignment.
    """
    ways = []
    for assignment in re.split(r"\s+(?=[A-Za-z_][\w.]*=)", text.strip()):
        path, equals, values = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--vary {text!r}: is written path.to.field=value, or path.to.field=value,value")
        ways.append([f"{path}={value}" for value in _apart(values)])
    return list(product(*ways))


def _apart(values: str) -> Iterator[str]:
    """Values between commas; those within brackets and quotes do not count."""
    depth, quote, start = 0, "", 0
    for place, letter in enumerate(values):
        if quote or letter in "'\"":
            quote = letter if not quote else quote if letter != quote else ""
        elif letter == "," and not depth:
            yield values[start:place].strip()
            start = place + 1
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
    yield values[start:].strip()
