"""Sparse upcycling (Komatsuzaki et al., 2022, arXiv:2212.05055): feed-forward layers become experts, of which a router chooses a few for each token."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tunesmith.models.load import Loaded
from tunesmith.models.memory import refuse_memory
from tunesmith.models.mixture import Balance, upcycle

from .weights import Weights


class MoE(Weights):
    """More room to learn at little more work a token: for many rows of different kinds. The model becomes a mixture of experts such as
    Mixtral (Jiang et al., 2024, arXiv:2401.04088), which transformers and inference servers load; it takes `experts` times the memory of
    the feed-forward layers, and 16 bytes for each weight of theirs that learns with AdamW."""

    kind: Literal["moe"] = "moe"
    merges: ClassVar[bool] = False
    experts: int = Field(4, ge=2)
    """Copies of each feed-forward layer; 8 in Mixtral, 32 in the paper, 4 is our choice. At the start all are the layer itself."""
    active: int = Field(2, ge=1)
    """Experts that compute a token, weighted by the softmax of their scores; 2 in Mixtral."""
    balance: float = Field(0.01, ge=0)
    """What is added to the loss, for each supervised token, times how unevenly tokens are spread over experts (Switch Transformer, Fedus et al.,
    2021, arXiv:2101.03961, takes 0.01). Counted over the tokens that pass together, so that smaller micro-batches change it a little."""
    rest: bool = False
    """Whether the rest of the model learns too, or experts and routers alone."""

    @model_validator(mode="after")
    def _some_rest(self) -> Self:
        if self.active > self.experts:
            raise ValueError(f"active: {self.active} experts cannot be chosen from {self.experts}")
        return self

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Upcycle, and let experts and routers learn."""
        self._upcycle(loaded, seed)
        super().attach(loaded, seed)
        if self.balance:
            uneven = Balance(loaded.model)
            loaded.penalty = lambda: self.balance * uneven()

    def chosen(self, model: Any, seed: int) -> set[str]:
        """Those of the experts and of the routers, or all."""
        return {
            name for name, _ in model.named_parameters() if self.rest or ".mlp.experts." in name or ".mlp.gate." in name
        }

    def restore(self, loaded: Loaded, folder: Path) -> None:
        """Upcycle, and read all weights."""
        self._upcycle(loaded, 0)
        super().restore(loaded, folder)

    def _upcycle(self, loaded: Loaded, seed: int) -> None:
        refuse_memory(loaded.name, loaded.model)
        loaded.release()
        loaded.model = upcycle(loaded.model, self.experts, self.active, seed)
