"""What structured methods share: whole parts of every layer go, and a smaller model of the same architecture is left."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.base.proof import Proof
from tunesmith.models.blocks import TRAITS

from .base import Pruning

PREFIX = "model.layers."
"""What the names of all tensors of decoder layers begin with, in the architectures that structured methods know."""
KNOWN = ", ".join(kind for kind, traits in TRAITS.items() if not traits.fused)


class Structured(Pruning):
    """Parts of layers go. What is left is smaller and quicker, with no zeros, and loads wherever its architecture does."""

    smaller = True
    walks = True

    def check(self, config: Any) -> None:
        """Refuse architectures whose parts are not known, and those that would have nothing left."""
        text = config.get_text_config()
        known = text.model_type in TRAITS and not TRAITS[text.model_type].fused
        if not known or config.model_type != text.model_type:
            raise ModelError(
                f"prune.method {self.kind}: cannot cut parts out of a {config.model_type}, only of {KNOWN}; take prune.method.kind=wanda"
            )
        layers = self.left(text).get("num_hidden_layers", text.num_hidden_layers)
        self.configured(text, range(layers))

    @abstractmethod
    def left(self, config: Any) -> dict[str, Any]:
        """Fields of the configuration as they will be.

        Raises:
            ModelError: nothing would be left.
        """

    @abstractmethod
    def cut(self, name: str, tensor: Tensor, kept: Tensor, layer: Any) -> Tensor:
        """What is left of a tensor of a layer, called `name` there."""

    def shrunk(self, model: Any, kept: Mapping[int, Tensor]) -> Any:
        """A new model of the same class, of the parts that are kept."""
        config = self.configured(model.config, sorted(kept))
        places = {number: place for place, number in enumerate(sorted(kept))}
        tensors = {}
        for name, tensor in model.state_dict().items():
            if not name.startswith(PREFIX):
                tensors[name] = tensor
                continue
            number, _, inner = name.removeprefix(PREFIX).partition(".")
            if int(number) in kept:
                layer = model.model.layers[int(number)]
                tensors[f"{PREFIX}{places[int(number)]}.{inner}"] = self.cut(inner, tensor, kept[int(number)], layer)
        with torch.random.fork_rng(devices=[]):
            small = type(model)(config).to(next(model.parameters()))
        small.load_state_dict(tensors)
        small.generation_config = model.generation_config
        return small.eval()

    def configured(self, config: Any, layers: Sequence[int]) -> Any:
        """The configuration as it will be, of the layers that stay.

        Raises:
            ModelError: it is none that transformers takes.
        """
        from huggingface_hub.errors import StrictDataclassError

        tree = {**config.to_dict(), **self.left(config)}
        if tree.get("layer_types") is not None:
            tree["layer_types"] = [tree["layer_types"][number] for number in layers]
        try:
            return type(config).from_dict(tree)
        except (StrictDataclassError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(
                f"prune.method {self.kind}: transformers takes no {config.model_type} of that shape: {reason}"
            ) from None

    def prove(self, proof: Proof, model: Any) -> None:
        """What is left has the shapes that its configuration says, and those are the ones asked for."""
        sizes = {
            name: getattr(model.config, name)
            for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        }
        layers = model.model.layers
        true = len(layers) == sizes["num_hidden_layers"] and all(_fits(layer, sizes) for layer in layers)
        proof.claim("every layer has the parts that the configuration says", true, **sizes)


def _fits(layer: Any, sizes: Mapping[str, int]) -> bool:
    attention, width = layer.self_attn, layer.self_attn.head_dim
    return bool(
        attention.q_proj.out_features == attention.o_proj.in_features == sizes["num_attention_heads"] * width
        and attention.k_proj.out_features == attention.v_proj.out_features == sizes["num_key_value_heads"] * width
        and layer.mlp.up_proj.out_features == layer.mlp.gate_proj.out_features == sizes["intermediate_size"]
        and layer.mlp.down_proj.in_features == sizes["intermediate_size"]
    )


def weighted(linear: nn.Linear, norm_I: Tensor) -> Tensor:
    """Float32 [I]: what each input of a layer matters, |W| times its norm, in the mean over outputs (Wanda-sp in An et al., 2024, arXiv:2312.11983)."""
    return linear.weight.detach().float().abs().mean(0) * norm_I


def largest(score_P: Tensor, count: int) -> Tensor:
    """int64 [count], in order: the parts with the largest scores."""
    return score_P.topk(count).indices.sort().values


@torch.no_grad()
def quiet(linear: nn.Linear, kept_I: Tensor) -> None:
    """Set the weights of all inputs but those that are kept to zero."""
    stays_I = torch.zeros(linear.in_features, dtype=torch.bool, device=linear.weight.device)
    stays_I[kept_I] = True
    linear.weight[:, ~stays_I] = 0.0


def spread(parts: Tensor, width: int) -> Tensor:
    """int64: the places of parts that are each `width` wide."""
    return (parts[:, None] * width + torch.arange(width, device=parts.device)).flatten()
