"""The fast path: a Llama-shaped decoder computed by fused operations, with the parameters where transformers put them.

It computes what `model(...)` computes, from the same modules, so adapters, checkpoints and the generic path see nothing of it. What it saves:
every intermediate that a fused operation need not write, the last layer's work on nodes that no loss reads, and all logits but a chunk.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunesmith.data.batch import Forest
from tunesmith.kernels import native
from tunesmith.kernels.add_norm import add_norm
from tunesmith.kernels.arena import kept_together
from tunesmith.kernels.dora_linear import DoRALinear
from tunesmith.kernels.forest_attention import rotary_attention
from tunesmith.kernels.gated_linear import gated_linear
from tunesmith.kernels.head import capped
from tunesmith.kernels.joint_linear import joint_linear
from tunesmith.kernels.lora_linear import LoRALinear
from tunesmith.kernels.quantised_linear import QuantisedLinear
from tunesmith.kernels.recompute import compact, recomputed

from .blocks import ACTIVATIONS, TRAITS, Block, Norm, activation_of, linear_layers, read_block
from .prompt import PrefixEmbedding

if TYPE_CHECKING:
    from .load import Loaded


class Decoder:
    """A decoder's blocks, ready to run; built anew when layers of the model are exchanged."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model, self.dtype, self.config = model, dtype, model.config.get_text_config()
        self.traits = TRAITS[self.config.model_type]
        layers = enumerate(model.model.layers)
        self.blocks = [read_block(layer, number, self.config, self.traits, dtype) for number, layer in layers]
        self.norm = Norm(model.model.norm, 1.0 if self.traits.gemma else 0.0)
        self.key = structure(model)
        self.softcap: float | None = self.config.final_logit_softcapping if self.traits.gemma else None

    def refresh(self) -> None:
        """Take over what the optimizer changed."""
        for block in self.blocks:
            for group in block.groups:
                group.refresh()

    def held(self) -> list[Tensor]:
        """What it keeps: the joint weights, of which the model's frozen layers hold views, and copies of what learns."""
        return [tensor for block in self.blocks for group in block.groups for tensor in group.held]

    def release(self) -> None:
        """Give the model's layers weights of their own again, as programs that save models expect."""
        for block in self.blocks:
            for group in block.groups:
                group.release()

    @property
    def paired(self) -> bool:
        """Whether inputs can be multiplied in pairs, as the compiled decoding step does."""
        return all(group.width % 2 == 0 for block in self.blocks for group in block.groups)

    @property
    def head(self) -> Tensor:
        """Weight [V, D] of the output head."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def embed(self, tokens_N: Tensor) -> Tensor:
        """Float32 [N, D]."""
        found: Tensor = self.model.get_input_embeddings()(tokens_N)
        return found.float()

    def angles(self, depth_N: Tensor, like: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosine and sine [N, R], float32, of each kind of layer."""
        rotary, place = self.model.model.rotary_emb, depth_N[None]
        kinds = {block.rotary for block in self.blocks}
        if self.config.model_type == "gemma3_text":
            turned = {kind: rotary(like[None], place, kind) for kind in kinds}
        else:
            turned = dict.fromkeys(kinds, rotary(like[None], place))
        return {kind: (cosine[0].contiguous(), sine[0].contiguous()) for kind, (cosine, sine) in turned.items()}

    def hidden(self, forest: Forest, nodes_M: Tensor, recompute: bool = False) -> Tensor:
        """Last hidden states [M, D] of some nodes, ready for the head; differentiable.

        Args:
            forest: the batch.
            nodes_M: int64; repeated nodes are allowed.
            recompute: whether the backward computes layers again, so that the forward keeps only what goes into them.
        """
        with kept_together():
            return self._pass(forest, nodes_M, recompute and torch.is_grad_enabled())

    def _pass(self, forest: Forest, nodes_M: Tensor, recompute: bool) -> Tensor:
        residual, update = self.embed(forest.tokens_N), None
        angles = self.angles(forest.depth_N, residual)
        for block in self.blocks[:-1]:
            if recompute:  # of the block as it is: others may use the model before the backward
                layer = partial(self._attend_and_feed, block.snapshot(), forest, angles, None)
                residual, update = recomputed(partial(compact, layer, self.dtype), residual, update)
            else:
                residual, update = self._attend_and_feed(block, forest, angles, None, residual, update)
        # the backward begins with the last block: to compute it again would save nothing
        return self.last(*self._attend_and_feed(self.blocks[-1], forest, angles, nodes_M, residual, update))

    def _attend_and_feed(
        self, block: Block, forest: Forest, angles: dict[str, tuple[Tensor, Tensor]], nodes_M: Tensor | None,
        residual: Tensor, update: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """A block, from what goes into it to the residual and what is still to be added to it, of all nodes or some."""
        residual, joint = self.project(block, residual, update)
        room = block.out.joint.room
        cosine, sine = angles[block.rotary]
        attended = rotary_attention(joint, cosine, sine, block.heads, forest.segments, block.shape, room)
        if nodes_M is not None:  # beyond this, nodes no longer meet
            residual, attended = residual.index_select(0, nodes_M), attended.index_select(0, nodes_M)
        return self.feed(block, residual, attended)

    def project(self, block: Block, residual: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """What comes before a block's attention: the residual, and queries, keys and values side by side."""
        residual, normed = self._norm(block.before_attention, residual, update, block.joint.joint.room)
        joint = joint_linear(normed, block.joint.joint, keep=True)
        if (
            block.joint.joint.factor_O is not None and torch.is_grad_enabled()
        ):  # its backward reads the outputs, which attention turns in place
            joint = joint.clone()
        return residual, self._head_norms(block, joint)

    def feed(self, block: Block, residual: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """What follows a block's attention: the residual, and what is still to be added to it."""
        update = joint_linear(attended, block.out.joint)
        update = self._post(block.after_attention, update)
        residual, normed = self._norm(block.before_feedforward, residual, update, block.gate_up.joint.room)
        gate_up = joint_linear(normed, block.gate_up.joint, keep=True)
        update = gated_linear(gate_up, block.activation, block.down.joint)
        return residual, self._post(block.after_feedforward, update)

    def last(self, residual: Tensor, update: Tensor | None) -> Tensor:
        """The hidden states that the head reads."""
        return self._norm(self.norm, residual, update, 0)[1]

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Float32 [M, V]."""
        weight = self.head.to(hidden_MD.dtype)
        return capped(torch.nn.functional.linear(hidden_MD, weight), self.softcap).float()

    def _norm(self, norm: Norm, residual: Tensor, update: Tensor | None, room: int) -> tuple[Tensor, Tensor]:
        return add_norm(residual, update, norm.weight, norm.eps, self.dtype, room)

    def _post(self, norm: Norm | None, update: Tensor) -> Tensor:
        return update if norm is None else self._norm(norm, update.float(), None, 0)[1]

    def _head_norms(self, block: Block, joint: Tensor) -> Tensor:
        """Norm queries and keys head by head, where the architecture does."""
        if block.head_norms is None:
            return joint
        heads = block.heads
        sizes = [heads.count * heads.width, heads.groups * heads.width, heads.groups * heads.width]
        parts = torch.split(joint, sizes, 1)
        normed = [
            self._norm(norm, part.reshape(-1, heads.width).float(), None, 0)[1].view(part.shape)
            for norm, part in zip(block.head_norms, parts[:2], strict=True)
        ]
        return torch.cat([*normed, parts[2]], 1)


def structure(model: Any) -> tuple[Any, ...]:
    """What a decoder was built from; unequal when a layer was exchanged, moved or cast."""
    traits = TRAITS[model.config.get_text_config().model_type]
    found = []
    for layer in model.model.layers:
        for group in linear_layers(layer, traits):
            for module in group:
                base = module.base if isinstance(module, LoRALinear) else module
                found.append((id(module), base.weight.data_ptr(), base.weight.dtype, base.weight.requires_grad))
    return tuple(found)


def norm_weights(model: Any) -> Iterator[Tensor]:
    """Of every norm of a decoder."""
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            yield weight


def misfit(loaded: "Loaded") -> str | None:
    """Why a model cannot take the fast path; None if it can."""
    model = loaded.model
    config = model.config.get_text_config()
    if config.model_type not in TRAITS or type(model).__name__.endswith("ForConditionalGeneration"):
        return f"no fused form of {config.model_type}"
    if not native.serves(torch.empty(0, device=loaded.device)):
        return "no compiled operations for this device"
    if isinstance(model.get_input_embeddings(), PrefixEmbedding):
        return "no fused form of keys and values that learn"
    if activation_of(config) not in ACTIVATIONS:
        return f"no fused form of {activation_of(config)}"
    offset = 1.0 if TRAITS[config.model_type].gemma else 0.0
    if any(bool((weight == -offset).any()) for weight in norm_weights(model) if not weight.is_meta):
        return "no fused form of a norm with a weight of zero"
    return _odd_layer(model, TRAITS[config.model_type])


def _odd_layer(model: Any, traits: Any) -> str | None:
    """What of a model's layers has no fused form."""
    for layer in model.model.layers:
        for group in linear_layers(layer, traits):
            for module in group:
                if type(module) not in (torch.nn.Linear, LoRALinear, DoRALinear) and not isinstance(
                    module, QuantisedLinear
                ):
                    return f"no fused form of {type(module).__name__}"
                if isinstance(module, LoRALinear) and module.enabled and module.training and module.dropout > 0:
                    return "no fused form of dropout of an adapter's inputs"
    return None
