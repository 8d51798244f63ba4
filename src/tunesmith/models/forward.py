"""One forward pass over a batch: log-probabilities of exactly the tokens a loss reads."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.kernels import head
from tunesmith.kernels.recompute import recomputed

from .attention import ForestAttend, attending, plain
from .load import Loaded

ADDED = ("lora_", "magnitude", "ia3_l", "memory_", "score.weight")
"""Parts of the names of parameters that adapters and heads add to a model."""
PROMPT = ".prompt"
"""How the name of a prompt that learns ends; what stands before it is the architecture's name of its embeddings."""


def token_logps(loaded: Loaded, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Log-probability, float32 [M], of each supervised token given those before it; differentiable.

    By fused operations where the model has such a form, else as a forest batch through its own layers, else over padded rows.

    Args:
        smoothing: share of the mean log-probability of the whole vocabulary that is mixed into each.
    """
    if not loaded.forest:
        return padded_logps(loaded, batch, smoothing)
    decoder = loaded.decoder()
    if decoder is None or (smoothing and decoder.softcap is not None):
        return generic_logps(loaded, batch, smoothing)
    batch, back_M = batch.behind(loaded.prefix).once()
    batch = batch.to(loaded.device)
    hidden_PD = decoder.hidden(batch.forest, batch.source_M, recompute=loaded.checkpointing)
    logp_P = head.token_logps(hidden_PD, decoder.head, batch.target_M, decoder.softcap)
    if smoothing:  # the mean of all logits is the logit of the mean weight, and the normaliser is in `logp_P` already
        apart_PD = decoder.head.float().mean(0) - decoder.head[batch.target_M].float()
        logp_P = logp_P + smoothing * (hidden_PD.float() * apart_PD).sum(1)
    return logp_P if back_M is None else logp_P.index_select(0, back_M.to(loaded.device))


def candidate_logps(loaded: Loaded, batch: Batch, token_MK: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability, float32 [M], of each supervised token, and, float32 [M, K], of K tokens in its place; both differentiable.

    Args:
        token_MK: int64, on the model's device.
        temperature: what logits are divided by for the K tokens.
    """
    decoder = loaded.decoder() if loaded.forest else None
    if decoder is None or decoder.softcap is not None:
        logits_UV, back_M, target_M = _logits(loaded, batch)
        warm_UV = logits_UV.float() / temperature
        found_MK = warm_UV[back_M[:, None], token_MK] - torch.logsumexp(warm_UV, -1)[back_M, None]
        return _pick(logits_UV, back_M, target_M, 0.0), found_MK
    batch = batch.behind(loaded.prefix).to(loaded.device)
    hidden_MD = decoder.hidden(batch.forest, batch.source_M, recompute=loaded.checkpointing)
    if temperature == 1:  # one pass of the head tells both
        both_ME = head.candidate_logps(hidden_MD, decoder.head, torch.cat([batch.target_M[:, None], token_MK], 1))
        return both_ME[:, 0], both_ME[:, 1:]
    logp_M = head.token_logps(hidden_MD, decoder.head, batch.target_M)
    return logp_M, head.candidate_logps(hidden_MD, decoder.head, token_MK, temperature)


@torch.no_grad()
def top_logps(loaded: Loaded, batch: Batch, count: int, temperature: float, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens in place of each supervised one, int64 [M, K], and their log-probabilities, float32 [M, K].

    Args:
        temperature: what logits are divided by.
        vocabulary: tokens from which on there are none.
    """
    chunks, back_M, _ = _logit_chunks(loaded, batch)
    parts = []
    for _, logits_UV in chunks:
        logp_UV = (logits_UV[:, :vocabulary].float() / temperature).log_softmax(-1)
        parts.append(logp_UV.topk(min(count, logp_UV.shape[1])))
    value_UK, index_UK = (torch.cat(each) for each in zip(*parts, strict=True))
    return index_UK[back_M], value_UK[back_M]


@torch.no_grad()
def error_norms(loaded: Loaded, batch: Batch) -> Tensor:
    """Length of each supervised token's error, the predicted distribution minus the one that is sure of it, float32 [M], from 0 to sqrt(2)."""
    chunks, back_M, target_M = _logit_chunks(loaded, batch)
    norm_M = torch.empty(len(back_M), device=loaded.device)
    for start, logits_UV in chunks:
        chance_UV = logits_UV.float().softmax(-1)
        mine = (back_M >= start) & (back_M < start + len(chance_UV))
        right_M = chance_UV[back_M[mine] - start, target_M[mine]]
        squared_U = chance_UV.square().sum(-1)
        norm_M[mine] = (squared_U[back_M[mine] - start] - right_M**2 + (1 - right_M) ** 2).clamp_min(0).sqrt()
    return norm_M


def _logit_chunks(loaded: Loaded, batch: Batch) -> tuple[Iterator[tuple[int, Tensor]], Tensor, Tensor]:
    """Logits some at a time, the number of the first of each [U, V] with it; which of all each supervised token is predicted from [M]; the tokens [M].

    Only transformers' own layers make all logits of a batch at once.
    """
    decoder = loaded.decoder() if loaded.forest else None
    if decoder is None:
        told_UX, back_M, target_M = _logits(loaded, batch)
    else:
        batch = batch.behind(loaded.prefix).to(loaded.device)
        node_U, back_M = torch.unique(batch.source_M, return_inverse=True)
        told_UX, target_M = decoder.hidden(batch.forest, node_U), batch.target_M
    chunks = ((start, told_UX[start : start + head.CHUNK]) for start in range(0, len(told_UX), head.CHUNK))
    return ((start, one if decoder is None else decoder.logits(one)) for start, one in chunks), back_M, target_M


def generic_logps(loaded: Loaded, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """The same through transformers' own layers: the twin of the fused operations, and the way of architectures that have none."""
    return _pick(*_forest_logits(loaded, batch), smoothing)


def padded_logps(loaded: Loaded, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """The same over sequences padded to one length: the obvious twin of the forest, and the way of models that cannot take it."""
    return _pick(*_padded_logits(loaded, batch), smoothing)


def _logits(loaded: Loaded, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [U, V], which of them each supervised token is predicted from [M], and the tokens [M]; through transformers' own layers."""
    return _forest_logits(loaded, batch) if loaded.forest else _padded_logits(loaded, batch)


def _forest_logits(loaded: Loaded, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    inputs = forest_inputs(loaded, batch)
    batch, device = batch.behind(loaded.prefix), loaded.device
    node_U, back_M = torch.unique(batch.source_M, return_inverse=True)
    arrange(loaded)
    with attending(ForestAttend(batch.forest)), autocast(loaded):
        out = loaded.model(**inputs, logits_to_keep=node_U.to(device))
    return out.logits[0], back_M.to(device), batch.target_M.to(device)


def _padded_logits(loaded: Loaded, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    inputs = padded_inputs(loaded, batch)
    batch, device = batch.behind(loaded.prefix), loaded.device
    arrange(loaded)
    with plain(loaded.model) if loaded.forest else nullcontext(), autocast(loaded):
        logits_STV = loaded.model(**inputs).logits
    depth_M = batch.forest.depth_N[batch.source_M].to(device)
    logits_MV = logits_STV[batch.sequence_M.to(device), depth_M]
    return logits_MV, torch.arange(len(depth_M), device=device), batch.target_M.to(device)


def pass_layers(loaded: Loaded, batch: Batch, padded: bool) -> None:
    """Through transformers' own layers and no further, as a forest or padded: for hooks that see what they compute. No logits are."""
    arrange(loaded)
    inputs: dict[str, Any] = (padded_inputs if padded else forest_inputs)(loaded, batch)
    attend = plain(loaded.model) if loaded.forest else nullcontext()
    if not padded:
        attend = attending(ForestAttend(batch.behind(loaded.prefix).forest))
    with attend, autocast(loaded):
        loaded.model.base_model(**inputs)


def forest_inputs(loaded: Loaded, batch: Batch) -> dict[str, Any]:
    """What transformers' layers are given of a forest; their attention is to be `ForestAttend`."""
    forest, device = batch.behind(loaded.prefix).forest, loaded.device
    tokens_BN, place_BN = forest.tokens_N[None].to(device), forest.depth_N[None].to(device)
    return {"input_ids": tokens_BN, "position_ids": place_BN, "use_cache": False}


def padded_inputs(loaded: Loaded, batch: Batch) -> dict[str, Any]:
    """What they are given of the same sequences, each a row of its own, [S, T]."""
    forest, device = batch.behind(loaded.prefix).forest, loaded.device
    nodes = [forest.nodes(number) for number in range(len(forest.segments))]
    width = max(map(len, nodes))
    tokens_ST = torch.stack([torch.nn.functional.pad(forest.tokens_N[n], (0, width - len(n))) for n in nodes])
    mask_ST = torch.stack([torch.arange(width) < len(n) for n in nodes]).long()
    return {"input_ids": tokens_ST.to(device), "attention_mask": mask_ST.to(device), "use_cache": False}


@contextmanager
def noisy_embeddings(loaded: Loaded, batch: Batch, size: float) -> Iterator[None]:
    """Within this block, if the model is in training mode, embeddings of a batch get noise uniform in +- size / sqrt(L D), of L tokens in their sequence (NEFTune).

    What sequences share gets the same noise, by the longest of them.
    """
    if not size:
        yield
        return
    length = _lengths(loaded, batch)

    def add(module: nn.Module, _: Any, out: Tensor) -> Tensor:
        bound = size / (length[..., None] * out.shape[-1]).sqrt().to(out.dtype)
        return out + bound * torch.empty_like(out).uniform_(-1, 1) if module.training else out

    handle = loaded.model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _lengths(loaded: Loaded, batch: Batch) -> Tensor:
    """Tokens of each sequence, float32 [S, 1]; of a forest, for each node of the longest that it is in, [N]."""
    forest = batch.behind(loaded.prefix).forest
    nodes = [forest.nodes(number) for number in range(len(forest.segments))]
    length_S = torch.tensor([len(each) for each in nodes], dtype=torch.float32)
    if not loaded.forest:
        return length_S[:, None].to(loaded.device)
    length_N = torch.zeros(len(forest.tokens_N)).scatter_reduce(
        0, torch.cat(nodes), length_S.repeat_interleave(length_S.long()), "amax"
    )
    return length_N.to(loaded.device)


def arrange(loaded: Loaded) -> None:
    """Make the model the one whose turn it is, and have transformers' own layers computed again by the backward, or not."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    loaded.turn()
    again = loaded.checkpointing and torch.is_grad_enabled()
    for layer in loaded.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = loaded.checkpointing, recomputed
            # It asks its own flag whether anything learns; that drops nothing, since what it holds keeps theirs.
            layer.training = loaded.model.training or again


def _pick(logits_UV: Tensor, back_M: Tensor, target_M: Tensor, smoothing: float) -> Tensor:
    """Log-softmax in float32, read where the targets are, with a share of its mean."""
    logits_UV = logits_UV.float()
    chosen_M = logits_UV[back_M, target_M]
    if smoothing:
        chosen_M = (1 - smoothing) * chosen_M + smoothing * logits_UV.mean(1)[back_M]
    return chosen_M - torch.logsumexp(logits_UV, -1)[back_M]


def autocast(loaded: Loaded) -> AbstractContextManager[Any]:
    """Compute in bf16 where the weights are kept in fp32 to learn; nothing where both are the same."""
    return torch.autocast(loaded.device.type, dtype=torch.bfloat16) if needs_autocast(loaded) else nullcontext()


def needs_autocast(loaded: Loaded) -> bool:
    """Whether products are to be in bf16 and weights of the model itself are kept in float32; what adapters add is cast where it is used."""
    own = (
        one for name, one in loaded.model.named_parameters()
        if not (name.endswith(PROMPT) or any(part in name for part in ADDED))
    )  # fmt: skip
    return loaded.precision == "bf16" and any(one.dtype == torch.float32 for one in own)
