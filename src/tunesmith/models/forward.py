"""One forward pass over a batch: log-probabilities of exactly the tokens a loss reads."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.batch import Batch
from tunesmith.kernels import head
from tunesmith.kernels.recompute import recomputed

from .attention import ForestAttend, attending, plain
from .load import Loaded


def token_logps(loaded: Loaded, batch: Batch) -> Tensor:
    """Log-probability, float32 [M], of each supervised token given those before it; differentiable.

    By fused operations where the model has such a form, else as a forest batch through its own layers, else over padded rows.
    """
    if not loaded.forest:
        return padded_logps(loaded, batch)
    decoder = loaded.decoder()
    if decoder is not None:
        batch = batch.to(loaded.device)
        hidden_MD = decoder.hidden(batch.forest, batch.source_M, recompute=loaded.checkpointing)
        return head.token_logps(hidden_MD, decoder.head, batch.target_M, decoder.softcap)
    return generic_logps(loaded, batch)


def generic_logps(loaded: Loaded, batch: Batch) -> Tensor:
    """The same through transformers' own layers: the twin of the fused operations, and the way of architectures that have none."""
    node_U, back_M = torch.unique(batch.source_M, return_inverse=True)
    device = loaded.device
    forest = batch.forest
    _arrange(loaded)
    with attending(ForestAttend(forest)), autocast(loaded):
        out = loaded.model(
            input_ids=forest.tokens_N[None].to(device),
            position_ids=forest.depth_N[None].to(device),
            logits_to_keep=node_U.to(device),
            use_cache=False,
        )
    return _pick(out.logits[0], back_M.to(device), batch.target_M.to(device))


def padded_logps(loaded: Loaded, batch: Batch) -> Tensor:
    """The same over sequences padded to one length: the obvious twin of the forest, and the way of models that cannot take it."""
    forest, device = batch.forest, loaded.device
    nodes = [forest.nodes(number) for number in range(len(forest.segments))]
    width = max(map(len, nodes))
    tokens_ST = torch.stack([torch.nn.functional.pad(forest.tokens_N[n], (0, width - len(n))) for n in nodes]).to(
        device
    )
    mask_ST = torch.stack([torch.arange(width) < len(n) for n in nodes]).long().to(device)
    _arrange(loaded)
    with plain(loaded.model) if loaded.forest else nullcontext(), autocast(loaded):
        logits_STV = loaded.model(input_ids=tokens_ST, attention_mask=mask_ST, use_cache=False).logits
    depth_M = forest.depth_N[batch.source_M].to(device)
    logits_MV = logits_STV[batch.sequence_M.to(device), depth_M]
    return _pick(logits_MV, torch.arange(len(depth_M), device=device), batch.target_M.to(device))


def _arrange(loaded: Loaded) -> None:
    """Have transformers' own layers computed again by the backward, or not."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in loaded.model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing != loaded.checkpointing:
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = loaded.checkpointing, recomputed


def _pick(logits_UV: Tensor, back_M: Tensor, target_M: Tensor) -> Tensor:
    """Log-softmax in float32, read where the targets are."""
    logits_UV = logits_UV.float()
    chosen_M = logits_UV[back_M, target_M]
    return chosen_M - torch.logsumexp(logits_UV, -1)[back_M]


def autocast(loaded: Loaded) -> AbstractContextManager[Any]:
    """Compute in bf16 where the weights are kept in fp32 to learn; nothing where both are the same."""
    kept = next(loaded.model.parameters()).dtype
    if loaded.precision == "bf16" and kept == torch.float32:
        return torch.autocast(loaded.device.type, dtype=torch.bfloat16)
    return nullcontext()
