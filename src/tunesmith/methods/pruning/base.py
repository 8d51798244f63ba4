"""What a pruning method is: which weights of a decoder's layers go, and what model is left."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from tunesmith.base import Family, ModelError
from tunesmith.base.proof import Proof
from tunesmith.data.example import Row
from tunesmith.models.layers import decoder_layers
from tunesmith.models.load import Loaded


class Pruning(Family):
    """Which weights go. Only linear layers of decoder layers lose any: embeddings, norms and the output head never do."""

    smaller: ClassVar[bool] = False
    """Whether a smaller model is left; else zeros stay in their places."""
    walks: ClassVar[bool] = False
    """Whether it runs layers one by one on rows, which takes a model whose attention takes forest batches."""
    rows: int = Field(128, ge=1)
    """Training rows, drawn at random, that activations are read from; 128 sequences in the papers, where they are longer."""

    def check(self, config: Any) -> None:
        """Refuse a model by its configuration alone.

        Raises:
            ModelError: this method cannot prune it.
        """

    @abstractmethod
    def silence(self, loaded: Loaded, rows: Sequence[Row]) -> Mapping[int, Tensor]:
        """Set what goes to zero, in a model in float32.

        Returns:
            Of structured methods: by layer, what each layer keeps; of a layer that goes, nothing. Else empty.

        Raises:
            ModelError: this method cannot prune it.
        """

    def shrunk(self, model: Any, kept: Mapping[int, Tensor]) -> Any:
        """A silenced model without what was silenced; the same model where zeros stay in their places."""
        return model

    def zeros(self, model: Any) -> dict[str, Tensor]:
        """By weight, bool: which are zero and have to stay it when the model learns again."""
        return {}

    @abstractmethod
    def prove(self, proof: Proof, model: Any) -> None:
        """Claim of the model that is left that what was asked for is gone."""


def prunable_layers(model: Any) -> list[nn.Module]:
    """A decoder's layers, from the lowest to the highest.

    Raises:
        ModelError: they cannot be told, or hold nothing that can be pruned.
    """
    found = decoder_layers(model)
    if not any(True for layer in found for _ in linears(layer)):
        raise ModelError(
            f"prune: {type(model).__name__} has no decoder layers with nn.Linear inside, which is all that is pruned"
        )
    return found


def linears(layer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(name, layer) of the linear layers inside a decoder layer."""
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def kind_of(layer: str) -> str:
    """A linear layer's last name, such as `q_proj`."""
    return layer.rpartition(".")[2]
