"""One new token for each sequence through all layers in one call (`native/decode.h`); transformers' own layers are its twin.

Keys and values of prompts stay where the prefill computed them, node by node of the forest, so that what prompts share is stored once; new
tokens go to a slot of each sequence.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import native
from .forest_attention import Heads, Shape
from .gated_linear import Activation
from .joint_linear import Joint

LANES = 16
"""What the kernel rounds lengths up to at most."""

ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}


class Norm(ctypes.Structure):
    """A norm; without weight it is absent."""

    _fields_ = (("weight", ctypes.c_void_p), ("eps", ctypes.c_float))

    @classmethod
    def of(cls, weight_D: Tensor | None, eps: float) -> "Norm":
        """Of a float32 weight."""
        found = cls(_at(weight_D), eps)
        found.held = weight_D
        return found


class Linear(ctypes.Structure):
    """A joint product."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "down")),
        *((name, ctypes.c_long) for name in ("rows", "width", "room", "ld")),
    )

    @classmethod
    def of(cls, weight_OJ: Tensor, bias_O: Tensor | None = None, down_RI: Tensor | None = None) -> "Linear":
        """[W | s B] as in `Joint`."""
        room = 0 if down_RI is None else len(down_RI)
        rows, columns = weight_OJ.shape
        found = cls(_at(weight_OJ), _at(bias_O), _at(down_RI), rows, columns - room, room, weight_OJ.stride(0))
        found.held = weight_OJ, bias_O, down_RI
        return found

    @classmethod
    def joint(cls, joint: Joint) -> "Linear":
        """Of a group of layers."""
        return cls.of(joint.weight_OJ, joint.bias_O, joint.down_RI)


class Layer(ctypes.Structure):
    """A decoder layer."""

    NORMS = ("before_attention", "query", "key", "after_attention", "before_feedforward", "after_feedforward")
    LINEARS = ("joint", "out", "gate_up", "down")
    _fields_ = (
        *((name, Norm) for name in NORMS),
        *((name, Linear) for name in LINEARS),
        *((name, ctypes.c_long) for name in ("kind", "heads", "groups", "width", "window", "activation")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    )

    @classmethod
    def of(
        cls, norms: dict[str, Norm], linears: dict[str, Linear], heads: Heads, shape: Shape, activation: Activation, kind: int
    ) -> "Layer":  # fmt: skip
        """From its parts, by name; `kind` is that of its angles."""
        found = cls(kind=kind)
        for name, part in {**norms, **linears}.items():
            setattr(found, name, part)
        found.heads, found.groups, found.width = heads.count, heads.groups, heads.width
        found.window, found.scale, found.softcap = shape.window or 2**62, shape.scale, shape.softcap or 0.0
        found.activation = ACTIVATIONS[activation]
        found.held = norms, linears
        return found


class Cache(ctypes.Structure):
    """Keys and values of one layer."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values", "new_keys", "new_values")),
        *((name, ctypes.c_long) for name in ("nodes", "room")),
    )

    @classmethod
    def of(cls, key_KND: Tensor, value_KND: Tensor, slots: int, room: int) -> "Cache":
        """Of a prefilled forest's, heads side by side in a row, with room for so many new tokens in each slot."""
        groups, count, width = key_KND.shape
        packed = {2: torch.bfloat16, 4: torch.float32}[native.run("packed_bytes", key_KND.dtype)]
        deep, room = up(width), up(room)
        nodes = up(count) + LANES  # a tile may reach beyond the last node
        held = [torch.empty(groups * deep * nodes, dtype=packed) for _ in range(2)]
        for down, (source, target) in enumerate(zip((key_KND, value_KND), held, strict=True)):
            native.run("pack_cache", source.dtype, source, source.stride(1), count, nodes, groups, width, target, down)
        held += [torch.zeros(slots * groups * deep * room, dtype=packed) for _ in range(2)]
        found = cls(*map(_at, held), nodes, room)
        found.held = held
        return found


class Step(ctypes.Structure):
    """Where the sequences of a batch stand."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("batch", "stretches", "longest", "turned")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "slot", "length", "given", "first_run", "runs")),
    )

    @classmethod
    def of(
        cls, slot_B: Tensor, length_B: Tensor, given_B: Tensor, runs: "Runs", cosine_KBR: Tensor, sine_KBR: Tensor
    ) -> "Step":
        """int64 each: the slot of each sequence, its length, and how much of it was prefilled; angles, float32, of each kind of layer."""
        held = cosine_KBR, sine_KBR, slot_B, length_B, given_B, runs.first, runs.runs
        found = cls(len(slot_B), runs.most + 1, int(length_B.max()) + 1, cosine_KBR.shape[2], *map(_at, held))
        found.held = held
        return found


class Runs:
    """Of each slot the runs of nodes that its prompt goes through."""

    def __init__(self, paths: Sequence[tuple[tuple[int, int], ...]]) -> None:
        self.most = max(map(len, paths))
        self.first = torch.tensor([0, *(len(path) for path in paths)]).cumsum(0)
        self.runs = torch.tensor([run for path in paths for run in path])


def up(count: int) -> int:
    """Rounded up to whole lanes."""
    return -(-count // LANES) * LANES


def _at(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.data_ptr()


class Layers:
    """All of a decoder, side by side as the kernel reads it."""

    def __init__(self, layers: Sequence[Layer], caches: Sequence[Cache]) -> None:
        self.held = layers, caches
        self.layers, self.caches = (Layer * len(layers))(*layers), (Cache * len(caches))(*caches)

    def pass_through(self, step: Step, residual_BD: Tensor, dtype: torch.dtype) -> None:
        """Float32 hidden states [B, D] go through every layer, in place; the new tokens' keys and values are kept."""
        native.run("decode_layers", dtype, self.layers, self.caches, len(self.layers), step, residual_BD)


def decode_head(norm: Norm, head: Linear, residual_BD: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits [B, V], float32."""
    logits_BV = residual_BD.new_empty(len(residual_BD), head.rows)
    native.run("decode_head", dtype, norm, head, residual_BD, logits_BV, len(residual_BD))
    return logits_BV
