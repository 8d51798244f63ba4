"""Reads a transformers decoder into blocks that fused operations compute: which layers go together, and what norms they have."""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.dora_linear import DoRALinear
from tunesmith.kernels.forest_attention import Heads, Shape
from tunesmith.kernels.gated_linear import Activation
from tunesmith.kernels.int8_linear import Int8Linear, Int8Weight
from tunesmith.kernels.joint_linear import Joint, Part
from tunesmith.kernels.lora_linear import LoRALinear
from tunesmith.kernels.nf4_linear import NF4Linear, NF4Stack
from tunesmith.kernels.quantised_linear import Quantised, QuantisedLinear

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Traits:
    """How an architecture departs from Llama."""

    fused: bool = False
    """Its checkpoints hold one projection for queries, keys and values, and one for gate and up."""
    head_norms: bool = False
    """Queries and keys are normed head by head."""
    gemma: bool = False
    """Norms multiply by 1 + weight, and stand before and after each block."""


TRAITS = {
    "llama": Traits(),
    "mistral": Traits(),
    "qwen2": Traits(),
    "qwen3": Traits(head_norms=True),
    "phi3": Traits(fused=True),
    "gemma2": Traits(gemma=True),
    "gemma3_text": Traits(gemma=True, head_norms=True),
}


class Norm:
    """An RMSNorm's weight as the kernels want it."""

    def __init__(self, module: Any, offset: float) -> None:
        self.module, self.offset = module, offset
        self.eps: float = module.eps if offset else module.variance_epsilon

    @property
    def weight(self) -> Tensor:
        """Float32; follows the parameter where it learns."""
        weight: Tensor = self.module.weight.float()
        return weight + self.offset if self.offset else weight


class Group:
    """Linear layers that read the same input, computed as one; it holds their frozen weights, of which the layers keep views."""

    def __init__(self, layers: list[Any], dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        first = self.bases[0].weight.new_empty(0, dtype=dtype)
        self.width = self.bases[0].in_features
        ranks = [layer.width if isinstance(layer, LoRALinear) else 0 for layer in layers]
        room = sum(ranks) + sum(ranks) % 2  # even, as products in pairs want it
        rows, biased = sum(base.out_features for base in self.bases), any(base.bias is not None for base in self.bases)
        self.base: Quantised | None = None
        self.columns = 0 if isinstance(self.bases[0], QuantisedLinear) else self.width  # of W, in the joint weight
        self.weight_OJ = first.new_zeros(rows, self.columns + room)
        self.bias_O = first.new_zeros(rows) if biased else None
        self.down_RI = first.new_zeros(room, self.width)
        self._take_over()
        self.joint = self.refresh()

    @property
    def bases(self) -> list[nn.Linear]:
        """The plain layers."""
        return [layer.base if isinstance(layer, LoRALinear) else layer for layer in self.layers]

    @torch.no_grad()
    def _take_over(self) -> None:
        """Copy the weights; a frozen one of the same dtype becomes a view of the copy, so that it is not stored twice."""
        row = 0
        if four := [base.held for base in self.bases if isinstance(base, NF4Linear)]:
            self.base = NF4Stack.of(four)
            for base, part in zip(self.bases, self.base.parts, strict=True):
                base.weight = nn.Parameter(part.codes_N, requires_grad=False)
            return
        layers = [base for base in self.bases if isinstance(base, Int8Linear)]
        if layers:
            self.base = Int8Weight.stacked([layer.held for layer in layers])
            for layer in layers:
                rows = slice(row, row + layer.out_features)
                layer.weight = nn.Parameter(self.base.codes_OI[rows], requires_grad=False)
                layer.scale = self.base.scale_O[rows]
                row = rows.stop
            return
        for base in self.bases:
            held = self.weight_OJ[row : row + len(base.weight), : self.width]
            held.copy_(base.weight)
            if self._viewed(base):
                base.weight.data = held  # the same parameter: whoever holds it goes on holding it
            row += len(held)

    @property
    def held(self) -> list[Tensor]:
        """All that it keeps."""
        base = [self.base.codes_OI, self.base.scale_O] if isinstance(self.base, Int8Weight) else []
        bias = [] if self.bias_O is None else [self.bias_O]
        return [self.weight_OJ, self.down_RI, *bias, *base]

    def _viewed(self, base: nn.Linear) -> bool:
        return base.weight.dtype == self.dtype and not base.weight.requires_grad

    def release(self) -> None:
        """Give the layers weights of their own again."""
        for base in filter(self._viewed, self.bases):
            base.weight.data = base.weight.detach().clone()

    @torch.no_grad()
    def refresh(self) -> Joint:
        """The product as it is now; what may have learnt is copied, as data, since a pass before may still want its backward."""
        parts, learnt = [], []
        row, column, used = 0, 0, self.down_RI.shape[0]
        for layer, base in zip(self.layers, self.bases, strict=True):
            rows = slice(row, row + base.out_features)
            row = rows.stop
            weight = None if self.base is not None else base.weight
            if self.base is None and not self._viewed(base):
                self.weight_OJ.data[rows, : self.width] = base.weight
            if base.bias is not None and self.bias_O is not None:
                self.bias_O.data[rows] = base.bias
            if not isinstance(layer, LoRALinear) or not layer.enabled:
                used = 0 if isinstance(layer, LoRALinear) else used
                parts.append(Part(rows, slice(column, column), 1.0))
                learnt += [weight, base.bias, None, None, None]
                continue
            columns = slice(column, column + len(layer.lora_A))
            start, column = column, column + layer.width
            self.weight_OJ.data[rows, self.columns + start : self.columns + column] = layer.scale * layer.up
            self.down_RI.data[start:column] = layer.down.to(self.dtype)
            parts.append(Part(rows, columns, layer.scale))
            magnitude = layer.magnitude if isinstance(layer, DoRALinear) else None
            learnt += [weight, base.bias, layer.lora_A, layer.lora_B, magnitude]
        joint_OJ = self.weight_OJ[:, : self.columns + used]  # with the corrections off, they are left out
        down_RI = self.down_RI[:used]
        self.joint = Joint(joint_OJ, self.bias_O, down_RI, tuple(parts), tuple(learnt), self.base, self._factors())
        return self.joint

    def _factors(self) -> Tensor | None:
        """What each output is multiplied by; None where nothing is."""
        if not any(isinstance(layer, DoRALinear) and layer.enabled for layer in self.layers):
            return None
        one = self.weight_OJ.new_ones((), dtype=torch.float32)
        return torch.cat(
            [
                layer.factor.detach() if isinstance(layer, DoRALinear) else one.expand(base.out_features)
                for layer, base in zip(self.layers, self.bases, strict=True)
            ]
        )


@dataclass(frozen=True)
class Block:
    """One decoder layer."""

    before_attention: Norm
    joint: Group
    """Queries, keys and values."""
    head_norms: tuple[Norm, Norm] | None
    heads: Heads
    shape: Shape
    rotary: str
    """Which rotary embedding, where layers differ in it."""
    out: Group
    after_attention: Norm | None
    before_feedforward: Norm
    gate_up: Group
    activation: Activation
    down: Group
    after_feedforward: Norm | None

    @property
    def groups(self) -> tuple[Group, Group, Group, Group]:
        """All of its linear layers."""
        return self.joint, self.out, self.gate_up, self.down

    def snapshot(self) -> "Block":
        """The same block, whose products stay as they are now when the original's are refreshed."""
        joint, out, gate_up, down = map(copy, self.groups)
        return replace(self, joint=joint, out=out, gate_up=gate_up, down=down)


def linear_layers(layer: Any, traits: Traits) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """The linear layers of a decoder layer, those with the same input together."""
    attention, mlp = layer.self_attn, layer.mlp
    if traits.fused:
        return [attention.qkv_proj], [attention.o_proj], [mlp.gate_up_proj], [mlp.down_proj]
    joint = [attention.q_proj, attention.k_proj, attention.v_proj]
    return joint, [attention.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]


def read_block(layer: Any, number: int, config: Any, traits: Traits, dtype: torch.dtype) -> Block:
    """A decoder layer as a block."""
    attention = layer.self_attn
    offset = 1.0 if traits.gemma else 0.0
    joint, out, gate_up, down = (Group(layers, dtype) for layers in linear_layers(layer, traits))
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    sliding = kinds[number] == "sliding_attention" or config.model_type in ("mistral", "phi3")
    softcap = config.attn_logit_softcapping if config.model_type == "gemma2" else None
    width = attention.head_dim
    second = layer.pre_feedforward_layernorm if traits.gemma else layer.post_attention_layernorm
    return Block(
        before_attention=Norm(layer.input_layernorm, offset),
        joint=joint,
        head_norms=(Norm(attention.q_norm, offset), Norm(attention.k_norm, offset)) if traits.head_norms else None,
        heads=Heads(config.num_attention_heads, config.num_key_value_heads, width),
        shape=Shape(attention.scaling, config.sliding_window if sliding else None, softcap),
        rotary=kinds[number],
        out=out,
        after_attention=Norm(layer.post_attention_layernorm, offset) if traits.gemma else None,
        before_feedforward=Norm(second, offset),
        gate_up=gate_up,
        activation=ACTIVATIONS[activation_of(config)],
        down=down,
        after_feedforward=Norm(layer.post_feedforward_layernorm, offset) if traits.gemma else None,
    )


def activation_of(config: Any) -> str:
    """The name of the feed-forward's activation."""
    name: str = config.hidden_activation if config.model_type.startswith("gemma") else config.hidden_act
    return name
