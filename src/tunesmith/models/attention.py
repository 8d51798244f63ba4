"""Plugs tunesmith's attention into any transformers decoder: forests for training, pages of keys and values for generation."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.batch import Forest, grow
from tunesmith.kernels import native
from tunesmith.kernels.forest_attention import Shape, forest_attention

NAME = "tunesmith"


class Attend(Protocol):
    """What attention is at the moment: queries [B, H, T, D], keys and values [B, K, T, D] -> output [B, H, T, D]."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor: ...


_current: ContextVar[Attend] = ContextVar("attend")


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Within this block the models' attention is `attend`."""
    token = _current.set(attend)
    try:
        yield
    finally:
        _current.reset(token)


class ForestAttend:
    """Attention of one forest batch."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self.windows: set[int | None] = set()
        """Of the layers that asked."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        self.windows.add(shape.window)
        return forest_attention(query[0], key[0], value[0], self.forest.segments, shape)[None]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The function that transformers' layers call."""
    if s_aux is not None:
        raise ValueError("attention sinks are not supported by forest batches")
    shape = Shape(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap)
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast rotary embeddings leave them in fp32
    out = _current.get()(module.layer_idx, query, key, value, shape)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention known to transformers under its name."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *args, **kwargs: None)


def adopt(model: Any) -> bool:
    """Switch a model to this attention if that gives its own logits on a small forest; else leave it as it was."""
    settle_positions(model)
    if "chunked_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
        return False  # the chunks are known to the mask alone, and are longer than the sequences of the check
    before = model.config._attn_implementation
    with plain(model):
        expected = _check_logits(model, None)
    attend = ForestAttend(grow(_checked(model)))
    try:
        model.set_attn_implementation(NAME)
        with native.disabled():  # the same order of operations, so that bf16 rounding does not blur the comparison
            found = _check_logits(model, attend)
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError):  # an architecture that this cannot carry
        model.set_attn_implementation(before)
        return False
    tolerance = 1e-4 if expected.dtype == torch.float32 else 3e-2
    exact = bool((found - expected).float().abs().mean() <= tolerance * expected.float().std())
    exact = exact and not (
        _has_window(model.config.get_text_config()) and attend.windows == {None}
    )  # the mask alone knows it
    if not exact:
        model.set_attn_implementation(before)
    return exact


def _has_window(config: Any) -> bool:
    """Whether some layers are to see the last tokens only."""
    kinds = getattr(config, "layer_types", None)
    window: int = getattr(config, "sliding_window", None) or 0
    most: float = getattr(config, "max_position_embeddings", None) or math.inf
    return 0 < window < most and (kinds is None or "sliding_attention" in kinds)


def settle_positions(model: Any) -> None:
    """Keep the rotary frequencies of short texts where transformers chooses them by the furthest position of a pass (longrope, dynamic): here a pass holds
    rows that have nothing to do with each other, and a prompt is read in several. `Loaded.longest` is how far they reach."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind):
            module.rope_type = "default"  # of no update; frequencies and scale were set when it was made


@contextmanager
def plain(model: Any) -> Iterator[None]:
    """Within this block a model uses transformers' eager attention: padded batches, the slow and obvious twin."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _checked(model: Any) -> list[Any]:
    """Four sequences with common prefixes."""
    words = np.random.default_rng(0).integers(0, model.config.get_text_config().vocab_size, 40)
    return [
        words[:20],
        np.concatenate([words[:12], words[20:30]]),
        np.concatenate([words[:12], words[30:]]),
        words[5:9],
    ]


@torch.no_grad()
def _check_logits(model: Any, attend: ForestAttend | None) -> Tensor:
    """Logits at the last tokens of these sequences, as a forest or one by one."""
    sequences, device = _checked(model), next(model.parameters()).device
    if attend is None:
        as_ids = [torch.from_numpy(sequence)[None].to(device) for sequence in sequences]
        return torch.stack([model(input_ids=ids, use_cache=False).logits[0, -1] for ids in as_ids])
    laid = attend.forest
    last = torch.stack([laid.nodes(number)[-1] for number in range(len(sequences))]).to(device)
    with attending(attend):
        out = model(
            input_ids=laid.tokens_N[None].to(device), position_ids=laid.depth_N[None].to(device), use_cache=False
        )
    found: Tensor = out.logits[0, last]
    return found
