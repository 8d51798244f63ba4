"""Rows that hold keys or passwords: a model repeats what it learnt, and a run keeps its rows."""

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from tunesmith.base.secrets import HINT, from_environment, secret_in

from ..corpus import gathered
from ..example import Example
from . import NAMED, Cleaner, Drop, Findings


class Secrets(Cleaner):
    """Drops rows, of every split, that hold a key of a service, a private key, a password in an address or a key that stands in this machine's environment.

    They are told by the form that their issuers gave them; a password in plain words is not. Change what was found: it stood in a file.
    """

    kind: Literal["secrets"] = "secrets"

    def find(self, splits: Mapping[str, Sequence[Example]]) -> Findings:
        """Rows with a secret in any of their fields."""
        known = from_environment()
        drops: list[Drop] = []
        named: list[str] = []
        for split, view in gathered(splits).items():
            for index, line in enumerate(view.lines()):
                text = line.decode()
                if not (HINT.search(text) or any(value in text for value in known)):
                    continue
                example = json.loads(text)
                origin = example.pop("origin")
                if found := secret_in(example, known):
                    drops.append(Drop(split, index, f"holds a secret: {found[1]}, in {found[0]}"))
                    named.append(f"{origin} ({split}) {drops[-1].reason}")
        return Findings(tuple(drops), {"named": named[:NAMED]})
