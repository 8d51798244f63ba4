"""Weight-decomposed low-rank adaptation (Liu et al., 2024, arXiv:2402.09353): a correction turns each row of a weight, a magnitude scales it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from tunesmith.kernels.dora_linear import DoRALinear
from tunesmith.kernels.lora_linear import LoRALinear

from .lora import LoRA


class DoRA(LoRA):
    """LoRA that learns how long each row of a weight is apart from where it points. Often better at half the rank; each step scales every layer's outputs once more."""

    kind: Literal["dora"] = "dora"  # type: ignore[assignment]
    LAYER: ClassVar[type[LoRALinear]] = DoRALinear

    def tensors(self, layer: LoRALinear) -> Mapping[str, Tensor]:
        """What is kept of a layer, by peft's names."""
        assert isinstance(layer, DoRALinear)
        return {**super().tensors(layer), "lora_magnitude_vector": layer.magnitude}

    def peft_config(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """peft's configuration."""
        return {**super().peft_config(names), "use_dora": True}
