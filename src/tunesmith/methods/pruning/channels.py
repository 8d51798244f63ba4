"""Feed-forward channels go, by the weight times the activation of what they write (Wanda-sp in An et al., 2024, arXiv:2312.11983)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from tunesmith.base import ModelError
from tunesmith.data.example import Row
from tunesmith.models.load import Loaded

from .structured import Structured, largest, quiet, weighted
from .walk import visits


class Channels(Structured):
    """The feed-forward part of every layer gets narrower; most of a layer's weights are there."""

    kind: Literal["channels"] = "channels"
    share: float = Field(0.25, gt=0, lt=1)
    """Share of each layer's channels that go; our choice."""
    multiple: int = Field(16, ge=1)
    """What stays is rounded to a multiple of this, as products are quickest. Our choice."""

    def left(self, config: Any) -> dict[str, Any]:
        """A narrower feed-forward part."""
        stay = round((1 - self.share) * config.intermediate_size / self.multiple) * self.multiple
        if not 0 < stay < config.intermediate_size:
            raise ModelError(
                f"prune.method.share {self.share}: of {config.intermediate_size} channels {stay} would stay, in multiples of {self.multiple}; "
                "change share or multiple"
            )
        return {"intermediate_size": stay}

    def silence(self, loaded: Loaded, rows: Sequence[Row]) -> Mapping[int, Tensor]:
        """What the channels that go write is no longer read; the channels that stay."""
        stay, kept = self.left(loaded.model.config)["intermediate_size"], {}
        for visit in visits(loaded, rows):
            layer: Any = visit.layer
            down = layer.mlp.down_proj
            kept[visit.number] = largest(weighted(down, visit.norms()["mlp.down_proj"]), stay)
            quiet(down, kept[visit.number])
        return kept

    def cut(self, name: str, tensor: Tensor, kept: Tensor, layer: Any) -> Tensor:
        """Rows of gate and up, columns of down."""
        match name.split(".")[-2:]:
            case ["gate_proj" | "up_proj", _]:
                return tensor[kept]
            case ["down_proj", "weight"]:
                return tensor[:, kept]
        return tensor
