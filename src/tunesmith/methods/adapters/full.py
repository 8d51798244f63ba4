"""Full fine-tuning (Howard and Ruder, 2018, arXiv:1801.06146): every weight learns."""

from typing import Any, Literal

from .weights import Weights


class Full(Weights):
    """Every weight learns, kept in float32. The most capacity, and the most memory: 16 bytes a parameter with AdamW."""

    kind: Literal["full"] = "full"

    def chosen(self, model: Any, seed: int) -> set[str]:
        """All of them."""
        return {name for name, _ in model.named_parameters()}
