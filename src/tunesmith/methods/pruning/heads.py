"""Attention heads go, by the weight times the activation of what they write (Wanda-sp in An et al., 2024, arXiv:2312.11983; groups as in
Ma et al., 2023, arXiv:2305.11627)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from tunesmith.base import ModelError
from tunesmith.data.example import Row
from tunesmith.models.load import Loaded

from .structured import Structured, largest, quiet, spread, weighted
from .walk import visits


class Heads(Structured):
    """Key-value heads go from every layer, each with the query heads that read it: the cache of an answer shrinks by as much. Of SmolLM2-135M's
    9 query and 3 key-value heads, one less leaves 6 and 2."""

    kind: Literal["heads"] = "heads"
    groups: int = Field(1, ge=1)
    """Key-value heads that each layer loses; one, the fewest, is our choice."""

    def left(self, config: Any) -> dict[str, Any]:
        """Fewer heads, each as wide as before."""
        groups, heads = config.num_key_value_heads, config.num_attention_heads
        if self.groups >= groups:
            raise ModelError(
                f"prune.method.groups {self.groups}: the model has {groups} key-value heads; leave at least one"
            )
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        stay = groups - self.groups
        return {"num_key_value_heads": stay, "num_attention_heads": stay * (heads // groups), "head_dim": width}

    def silence(self, loaded: Loaded, rows: Sequence[Row]) -> Mapping[int, Tensor]:
        """What the heads that go write is no longer read; the heads that stay, by key-value head."""
        config = loaded.model.config
        stay, kept = self.left(config)["num_key_value_heads"], {}
        for visit in visits(loaded, rows):
            layer: Any = visit.layer
            attention = layer.self_attn
            score_I = weighted(attention.o_proj, visit.norms()["self_attn.o_proj"])
            kept[visit.number] = largest(score_I.view(config.num_key_value_heads, -1).sum(1), stay)
            quiet(
                attention.o_proj, spread(kept[visit.number], attention.o_proj.in_features // config.num_key_value_heads)
            )
        return kept

    def cut(self, name: str, tensor: Tensor, kept: Tensor, layer: Any) -> Tensor:
        """Rows of queries, keys and values; columns of what reads the heads."""
        width, each = layer.self_attn.head_dim, layer.self_attn.num_key_value_groups * layer.self_attn.head_dim
        match name.split(".")[-2:]:
            case ["q_proj", _]:
                return tensor[spread(kept, each)]
            case ["k_proj" | "v_proj", _]:
                return tensor[spread(kept, width)]
            case ["o_proj", "weight"]:
                return tensor[:, spread(kept, each)]
        return tensor
