"""Walks through a decoder on calibration rows, a layer at a time: each reads what the layers before it, pruned already, make of them
(Frantar and Alistarh, 2023, arXiv:2301.00774)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch, Forest
from tunesmith.data.example import Row
from tunesmith.models.attention import ForestAttend, attending
from tunesmith.models.load import Loaded

from .base import linears, prunable_layers

TOGETHER = 8
"""Rows computed in one pass; prefixes are not shared, so that each token counts as often as it stands in the rows."""
EXACT = 1e-4
"""Largest share of its size by which a layer called by itself may differ from the same layer inside the model."""


@dataclass(frozen=True)
class Call:
    """How a layer is called for some rows."""

    forest: Forest
    hidden: Tensor
    """[1, N, D]: what goes in."""
    arguments: tuple[Any, ...]
    settings: dict[str, Any]

    def through(self, layer: nn.Module) -> Tensor:
        """[1, N, D]: what comes out of the layer as it is now."""
        with attending(ForestAttend(self.forest)):
            found = layer(self.hidden, *self.arguments, **self.settings)
        return found if isinstance(found, Tensor) else found[0]


@dataclass(frozen=True)
class Visit:
    """A layer and everything that goes into it."""

    number: int
    layer: nn.Module
    calls: Sequence[Call]

    def norms(self) -> dict[str, Tensor]:
        """By linear layer inside, float32 [I]: the 2-norm over all tokens of each of its inputs."""
        squares: dict[str, Tensor] = {}

        def note(name: str, given: Tensor) -> None:
            seen_I = given.detach().float().flatten(0, -2).square().sum(0)
            squares[name] = squares[name] + seen_I if name in squares else seen_I

        hooks = [
            linear.register_forward_pre_hook(lambda _, given, name=name: note(name, given[0]))
            for name, linear in linears(self.layer)
        ]
        for call in self.calls:
            call.through(self.layer)
        for hook in hooks:
            hook.remove()
        return {name: square_I.sqrt() for name, square_I in squares.items()}


@torch.no_grad()
def visits(loaded: Loaded, rows: Sequence[Row]) -> Iterator[Visit]:
    """Every layer with what goes into it; what the caller changes in a layer before asking for the next changes what the next one reads.

    Raises:
        ModelError: the layers of this architecture cannot be called one by one.
    """
    layers = prunable_layers(loaded.model)
    calls = _recorded(loaded, layers, rows)
    carried = [call.hidden for call in calls[0]]
    for number, layer in enumerate(layers):
        own = [replace(call, hidden=hidden) for call, hidden in zip(calls[number], carried, strict=True)]
        yield Visit(number, layer, own)
        carried = [call.through(layer) for call in own]


def _recorded(loaded: Loaded, layers: list[nn.Module], rows: Sequence[Row]) -> list[list[Call]]:
    """By layer, how it is called for each batch of rows."""
    if not loaded.forest:
        raise ModelError(refusal(loaded.name))
    loaded.model.eval()
    calls: list[list[Call]] = [[] for _ in layers]
    order = sorted(rows, key=len)
    for start in range(0, len(order), TOGETHER):
        alone = [Row(row.origin, row.sequences[:1]) for row in order[start : start + TOGETHER]]
        forest = Batch.of(alone, share=False).forest
        seen = _seen(loaded, layers, forest)
        if len(seen) != len(layers) or not all(arguments for arguments, _ in seen):
            raise ModelError(refusal(loaded.name))
        for place, (arguments, settings) in enumerate(seen):
            # beyond the first layer inputs are computed anew; those of the first batch stay for the comparison
            hidden = arguments[0] if place == 0 or start == 0 else arguments[0].new_zeros(0)
            calls[place].append(Call(forest, hidden, arguments[1:], settings))
    for place, layer in enumerate(layers[:-1]):
        expected = calls[place + 1][0].hidden
        apart = (calls[place][0].through(layer) - expected).abs().max()
        if not apart <= EXACT * expected.abs().max():
            raise ModelError(refusal(loaded.name))
    return calls


def _seen(loaded: Loaded, layers: list[nn.Module], forest: Forest) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Positional and named arguments of each layer in one pass through the model."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, named: seen.append((given, named)), with_kwargs=True)
        for layer in layers
    ]
    device = loaded.device
    with attending(ForestAttend(forest)):
        loaded.model(
            input_ids=forest.tokens_N[None].to(device), position_ids=forest.depth_N[None].to(device), logits_to_keep=1, use_cache=False
        )  # fmt: skip
    for hook in hooks:
        hook.remove()
    return seen


def refusal(model: str) -> str:
    """What to say of a model whose layers cannot be called one by one."""
    return f"prune: the layers of {model} cannot be run one by one on training rows; take prune.method.kind=magnitude"
