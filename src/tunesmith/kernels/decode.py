"""New tokens of several sequences through all layers in one call (`native/decode.h`); transformers' own layers are its twin.

Keys and values lie in pages of `PAGE` positions that sequences share where their tokens are the same so far. A row's numbers come out the same to
the last bit whatever rows pass beside it.
"""

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import native
from .arena import NORESERVE
from .forest_attention import Heads, Shape
from .gated_linear import KINDS, Activation
from .int8_linear import Int8Weight
from .joint_linear import Joint
from .nf4_linear import BLOCK, NF4Stack

LANES = 16
"""What the kernel rounds lengths up to at most."""

PAGE = 64
"""Positions of a page (`fused.c`)."""


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
        *((name, ctypes.c_void_p) for name in ("codes", "four", "scale", "total")),
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
        """Of a group of layers; weights in few bits are read as they are, unless outputs have factors or blocks end within rows."""
        if joint.factor_O is None and isinstance(joint.base, Int8Weight | NF4Stack):
            width = joint.down_RI.shape[1]
            if isinstance(joint.base, Int8Weight) or width % BLOCK == 0:
                return cls.few(joint.base, joint.weight_OJ, joint.bias_O, joint.down_RI)
        joint = joint.folded()
        return cls.of(joint.weight_OJ, joint.bias_O, joint.down_RI)

    @classmethod
    def few(cls, base: Int8Weight | NF4Stack, up_OR: Tensor, bias_O: Tensor | None, down_RI: Tensor) -> "Linear":
        """W in few bits, [s B] in plain numbers beside it."""
        rows, room = up_OR.shape
        found = cls(_at(up_OR), _at(bias_O), _at(down_RI), rows, down_RI.shape[1], room, up_OR.stride(0))
        if isinstance(base, Int8Weight):
            total_O = base.codes_OI.sum(1, dtype=torch.int32)
            held = [base.codes_OI, base.scale_O, total_O]
            found.codes, found.scale, found.total = map(_at, held)
        else:
            held = [base.codes_N, torch.cat([part.scales() for part in base.parts])]
            found.four, found.scale = map(_at, held)
        found.held = up_OR, bias_O, down_RI, *held
        return found


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
        found.activation = KINDS[activation]
        found.held = norms, linears
        return found


class Cache(ctypes.Structure):
    """Where one layer's keys and values begin in the first page, and the numbers from page to page."""

    _fields_ = (("keys", ctypes.c_void_p), ("values", ctypes.c_void_p), ("stride", ctypes.c_long))


class Storage:
    """Room for pages of keys and values of all layers; a page takes memory when it is first written.

    Args:
        layers: of the decoder.
        count: of pages.
        dtype: of the products.

    Raises:
        OSError: the system does not even hand out the addresses.
    """

    def __init__(self, layers: Sequence[Layer], count: int, dtype: torch.dtype) -> None:
        packed = {2: torch.bfloat16, 4: torch.float32}[native.run("packed_bytes", dtype)]
        sizes = [layer.groups * up(layer.width) * PAGE for layer in layers]
        stride = 2 * sum(sizes)
        room = mmap.mmap(-1, count * stride * packed.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
        self.pages = torch.frombuffer(room, dtype=packed).view(count, stride)
        at, caches = self.pages.data_ptr(), []
        for size in sizes:
            step = size * packed.itemsize
            caches.append(Cache(at, at + step, stride))
            at += 2 * step
        self.caches = (Cache * len(caches))(*caches)

    def copy(self, source: int, target: int) -> None:
        """A page's keys and values to another page."""
        self.pages[target] = self.pages[source]


class Step(ctypes.Structure):
    """Where the rows of a step stand: stretches of new tokens, each of one sequence."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "feeds", "longest", "pages", "turned")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "first", "start", "table")),
    )

    @classmethod
    def of(
        cls, counts: Sequence[int], starts: Sequence[int], tables: Sequence[Sequence[int]], cosine_KNR: Tensor, sine_KNR: Tensor
    ) -> "Step":  # fmt: skip
        """Of each stretch its number of rows, the position of its first and the pages of its sequence; angles, float32, of each kind of layer."""
        most, first = max(map(len, tables)), [0]
        for count in counts:
            first.append(first[-1] + count)
        whole = [[*table, *[0] * (most - len(table))] for table in tables]
        places = torch.tensor(first), torch.tensor(starts), torch.tensor(whole)
        held = cosine_KNR, sine_KNR, *places
        found = cls(first[-1], len(counts), max(counts), most, cosine_KNR.shape[2], *map(_at, held))
        found.held = held
        return found


def up(count: int) -> int:
    """Rounded up to whole lanes."""
    return -(-count // LANES) * LANES


def _at(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.data_ptr()


class Layers:
    """All of a decoder, side by side as the kernel reads it, with pages for its keys and values."""

    def __init__(self, layers: Sequence[Layer], pages: int, dtype: torch.dtype) -> None:
        self.held, self.dtype = layers, dtype
        self.layers, self.storage = (Layer * len(layers))(*layers), Storage(layers, pages, dtype)

    def pass_through(self, step: Step, residual_ND: Tensor) -> None:
        """Float32 hidden states [N, D] go through every layer, in place; the rows' keys and values are kept."""
        native.run("decode_layers", self.dtype, self.layers, self.storage.caches, len(self.layers), step, residual_ND)


def decode_head(norm: Norm, head: Linear, residual_BD: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits [B, V], float32."""
    logits_BV = residual_BD.new_empty(len(residual_BD), head.rows)
    native.run("decode_head", dtype, norm, head, residual_BD, logits_BV, len(residual_BD))
    return logits_BV
