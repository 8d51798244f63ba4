"""Log-probabilities of chosen tokens without the logits: the head runs in chunks, and the gradient is made in the forward.

For logp = log softmax(h W^T)[token], d logp / d h = W[token] - softmax W. It is kept per token, [M, D], instead of logits, [M, V]; what an
objective does with the log-probabilities only scales it. The idea is that of cut cross-entropy and Liger's fused linear cross-entropy.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from . import native

CHUNK = 256
"""Tokens whose logits exist at a time."""


def token_logps(hidden_MD: Tensor, weight_VD: Tensor, token_M: Tensor, softcap: float | None = None) -> Tensor:
    """Log-probability, float32 [M], of one token a row; differentiable in the hidden states and, if it learns, in the weight.

    Args:
        hidden_MD: last hidden states, in the dtype of the products.
        weight_VD: the output head; cast to the dtype of `hidden_MD`.
        token_M: int64.
        softcap: logits pass through softcap * tanh(logit / softcap).
    """
    if softcap is not None or not native.serves(hidden_MD):
        return reference(hidden_MD, weight_VD, token_M, softcap)
    out: Tensor = _TokenLogps.apply(hidden_MD, weight_VD, token_M)  # type: ignore[no-untyped-call]
    return out


def candidate_logps(hidden_MD: Tensor, weight_VD: Tensor, token_MK: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability, float32 [M, K], of K tokens a row; differentiable in the hidden states and, if it learns, in the weight.

    All are read from one row of logits, so that in bf16 too they are parts of one distribution; the backward makes the logits again.

    Args:
        hidden_MD: last hidden states, in the dtype of the products.
        weight_VD: the output head; cast to the dtype of `hidden_MD`.
        token_MK: int64.
        temperature: what logits are divided by.
    """
    out: Tensor = _CandidateLogps.apply(hidden_MD, weight_VD, token_MK, temperature)  # type: ignore[no-untyped-call]
    return out


def reference(hidden_MD: Tensor, weight_VD: Tensor, token_M: Tensor, softcap: float | None = None) -> Tensor:
    """The same by plain operations, all logits at once."""
    logits_MV = capped(linear(hidden_MD, weight_VD.to(hidden_MD.dtype)), softcap).float()
    return logits_MV.gather(1, token_M[:, None])[:, 0] - torch.logsumexp(logits_MV, 1)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Soft-capped logits (Gemma 2, arXiv:2408.00118, section 2)."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _direction(hidden_MD: Tensor, weight_VD: Tensor, token_M: Tensor, logp_M: Tensor, learning: bool) -> Tensor:
    """A chunk's logits, or onehot - softmax in their place; the log-probabilities go into `logp_M`."""
    logits_MV = linear(hidden_MD, weight_VD)
    native.run(
        "token_logp", logits_MV.dtype, logits_MV, token_M, logp_M, len(token_M), logits_MV.shape[1], int(learning)
    )
    return logits_MV


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, token_M: Tensor) -> Tensor:
        weight, token_M = weight_VD.to(hidden_MD.dtype), token_M.contiguous()
        logp_M = hidden_MD.new_empty(len(token_M), dtype=torch.float32)
        moving = ctx.needs_input_grad[0]
        direction_MD = torch.empty_like(hidden_MD) if moving else None
        for start in range(0, len(token_M), CHUNK):
            rows = slice(start, start + CHUNK)
            found = _direction(hidden_MD[rows], weight, token_M[rows], logp_M[rows], moving)
            if direction_MD is not None:
                torch.mm(found, weight, out=direction_MD[rows])
        ctx.save_for_backward(direction_MD, *((hidden_MD, weight, token_M) if ctx.needs_input_grad[1] else ()))
        return logp_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_M,) = grads
        direction_MD, *kept = ctx.saved_tensors
        d_hidden = None if direction_MD is None else (direction_MD * grad_M[:, None]).to(direction_MD.dtype)
        d_weight = None
        if kept:
            hidden_MD, weight, token_M = kept
            d_weight = weight.new_zeros(weight.shape, dtype=torch.float32)
            spare_M = torch.empty_like(grad_M)
            for start in range(0, len(token_M), CHUNK):
                rows = slice(start, start + CHUNK)
                found = _direction(hidden_MD[rows], weight, token_M[rows], spare_M[rows], True)
                d_weight += (found * grad_M[rows, None]).to(found.dtype).t() @ hidden_MD[rows]
        return d_hidden, d_weight, None


class _CandidateLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, token_MK: Tensor, temperature: float) -> Tensor:
        weight = weight_VD.to(hidden_MD.dtype)
        logp_MK = hidden_MD.new_empty(token_MK.shape, dtype=torch.float32)
        for start in range(0, len(token_MK), CHUNK):
            rows = slice(start, start + CHUNK)
            warm_MV = linear(hidden_MD[rows], weight).float() / temperature
            logp_MK[rows] = warm_MV.gather(1, token_MK[rows]) - torch.logsumexp(warm_MV, 1, keepdim=True)
        ctx.save_for_backward(hidden_MD, weight, token_MK)
        ctx.temperature = temperature
        return logp_MK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_MK,) = grads
        hidden_MD, weight, token_MK = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        d_weight = weight.new_zeros(weight.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(token_MK), CHUNK):
            rows = slice(start, start + CHUNK)
            share_MV = (linear(hidden_MD[rows], weight).float() / ctx.temperature).softmax(1)
            slope_MV = (share_MV * -grad_MK[rows].sum(1, keepdim=True)).scatter_add_(1, token_MK[rows], grad_MK[rows])
            slope_MV = (slope_MV / ctx.temperature).to(weight.dtype)
            if d_hidden is not None:
                torch.mm(slope_MV, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += slope_MV.t() @ hidden_MD[rows]
        return d_hidden, d_weight, None, None
