"""A head: one number for each token, read from the last hidden state. It scores whole answers, or says what is still to be earned."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.kernels import head as vocabulary

from .forward import generic_logps, padded_logps, pass_layers
from .load import Loaded

FILE = "head.safetensors"
"""Stands beside an adapter that learnt with a head."""
NAME = "score"
"""Where a model carries it: transformers' name in models that classify sequences."""


class Head(nn.Linear):
    """Zero at first, so that it says nothing before it has learnt something; always float32."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(width, 1, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """From [..., D] to float32 [...]."""
        return nn.functional.linear(hidden.float(), self.weight)[..., 0]


def attach_head(loaded: Loaded) -> Head:
    """Give a model a head that learns, after its adapter: it is no layer for an adapter to change."""
    made = Head(loaded.model.get_output_embeddings().weight.shape[1], loaded.device)
    loaded.model.add_module(NAME, made)
    return made


def detach_head(loaded: Loaded) -> Head:
    """Take it off, so that what is left is the model of its architecture."""
    found = getattr(loaded.model, NAME)
    delattr(loaded.model, NAME)
    assert isinstance(found, Head)
    return found


def save_head(head: Head, folder: Path) -> None:
    """Write `head.safetensors`."""
    save_file({f"{NAME}.weight": head.weight.detach().cpu().contiguous()}, folder / FILE, {"format": "pt"})


def restore_head(loaded: Loaded, folder: Path) -> None:
    """Give a model the head that lies in a folder, in a file of its own or among a model's weights; it learns no more.

    Raises:
        ModelError: there is none, or it is not of this model.
    """
    name = f"{NAME}.weight"
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name not in file.keys():  # noqa: SIM118  it is no mapping
                continue
            weight = file.get_tensor(name).float()
        made = attach_head(loaded).requires_grad_(False)
        if weight.shape != made.weight.shape:
            shapes = f"{tuple(weight.shape)}, expected {tuple(made.weight.shape)}"
            raise ModelError(
                f"{path}: {name} has shape {shapes}; it needs one label, and the model that it was learnt on"
            )
        made.weight.data.copy_(weight)
        return
    raise ModelError(f"{folder}: holds no {name}: it is no reward model; give what objective reward trained")


def token_values(loaded: Loaded, batch: Batch) -> Tensor:
    """What the head says, float32 [M], where each supervised token is predicted; differentiable. No logits are computed."""
    return _seen(loaded, batch, logits=False)[1]


def logps_and_values(loaded: Loaded, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of supervised tokens, as `token_logps`, and values, as `token_values`, float32 [M] each, in one pass."""
    return _seen(loaded, batch, logits=True)


def scores(loaded: Loaded, batch: Batch) -> Tensor:
    """What the head says, float32 [S], at the last token of each sequence; differentiable."""
    return token_values(loaded, batch.at_ends())


def _seen(loaded: Loaded, batch: Batch, logits: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities, if asked for (else nothing), and values: the same choice of ways as `token_logps`."""
    if not loaded.forest:
        return padded_seen(loaded, batch, logits)
    decoder = loaded.decoder()
    if decoder is None:
        return generic_seen(loaded, batch, logits)
    batch, back_M = batch.behind(loaded.prefix).once()
    batch = batch.to(loaded.device)
    hidden_PD = decoder.hidden(batch.forest, batch.source_M, recompute=loaded.checkpointing)
    value_P = loaded.model.score(hidden_PD)
    logp_P = vocabulary.token_logps(hidden_PD, decoder.head, batch.target_M, decoder.softcap) if logits else value_P[:0]
    if back_M is None:
        return logp_P, value_P
    back_M = back_M.to(loaded.device)
    return logp_P.index_select(0, back_M) if logits else logp_P, value_P.index_select(0, back_M)


def generic_seen(loaded: Loaded, batch: Batch, logits: bool) -> tuple[Tensor, Tensor]:
    """The same through transformers' own layers."""
    logp_M = loaded.model.score.weight.new_empty(0)
    with _hidden_states(loaded) as seen:
        if logits:
            logp_M = generic_logps(loaded, batch)
        else:
            pass_layers(loaded, batch, padded=False)
    source_M = batch.behind(loaded.prefix).source_M.to(loaded.device)
    return logp_M, loaded.model.score(seen[0][0, source_M])


def padded_seen(loaded: Loaded, batch: Batch, logits: bool) -> tuple[Tensor, Tensor]:
    """The same over sequences padded to one length."""
    logp_M = loaded.model.score.weight.new_empty(0)
    with _hidden_states(loaded) as seen:
        if logits:
            logp_M = padded_logps(loaded, batch)
        else:
            pass_layers(loaded, batch, padded=True)
    longer = batch.behind(loaded.prefix)
    depth_M = longer.forest.depth_N[longer.source_M].to(loaded.device)
    return logp_M, loaded.model.score(seen[0][batch.sequence_M.to(loaded.device), depth_M])


@contextmanager
def _hidden_states(loaded: Loaded) -> Iterator[list[Tensor]]:
    """Within this block the list gets the last hidden states of each pass, [batch, tokens, D]: what the output head reads."""
    seen: list[Tensor] = []
    handle = loaded.model.base_model.register_forward_hook(lambda module, _, out: seen.append(out[0]))
    try:
        yield seen
    finally:
        handle.remove()
