"""The proof beside an artifact: claims that were checked when it was written, with their figures."""

from pathlib import Path
from typing import Any

from .errors import ProofError
from .files import write_json


class Proof:
    """Collects claims; `write` stores them all and refuses if one does not hold."""

    def __init__(self) -> None:
        self.claims: list[dict[str, Any]] = []

    def claim(self, claim: str, holds: bool, **figures: Any) -> None:
        """Note a claim, whether it holds, and the figures it rests on."""
        self.claims.append({"claim": claim, "holds": bool(holds), **figures})

    def write(self, path: Path) -> None:
        """Write `proof.json`.

        Raises:
            ProofError: a claim does not hold; the file is there to be read all the same.
        """
        write_json(path, {"claims": self.claims})
        failed = [claim for claim in self.claims if not claim["holds"]]
        if failed:
            figures = ", ".join(
                f"{name} {value}" for name, value in failed[0].items() if name not in ("claim", "holds")
            )
            raise ProofError(
                f"{path}: the claim {failed[0]['claim']!r} does not hold ({figures}); the artifact is not made"
            )
