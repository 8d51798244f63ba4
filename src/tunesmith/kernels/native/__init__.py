"""Loads the compiled CPU operations (`fused.c`) for this processor; where there are none, callers use their torch reference."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
SWITCH = "TUNESMITH_KERNELS"
"""Environment variable: `torch` turns the compiled operations off, `avx512`, `avx2` or `portable` picks one build."""
LEVELS = ("avx512bf16", "avx512", "avx2", "portable")
NAMES = {torch.float32: "float", torch.bfloat16: "bf16"}
ARGUMENTS = {
    "add_norm": "pppppnpnnf",
    "add_norm_backward": "ppnpnppppnn",
    "rotate": "pnnnnppfn",
    "glu": "ppnnni",
    "glu_backward": "ppnpnni",
    "stretch": "pppnn",
    "stretch_backward": "ppppppnn",
    "attention": "ppppppppnnnnnnff",
    "attention_backward": "pppppppppppppnnnnnnnff",
    "token_logp": "pppnni",
    "perturb": "ppnnnnnnnffi",
    "quantise": "pnpppnni",
    "dequantise": "ppppnnni",
    "nf4": "pppnnn",
    "decode_layers": "ppnpp",
    "decode_head": "ppppn",
    "packed_bytes": "",
}
"""Of each operation: p a pointer, n a count, f a float, i an int."""
LAYOUT = 2
"""Of the structures that are handed over; a library of another one was compiled from other files, and is not used."""
TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_long, "f": ctypes.c_float, "i": ctypes.c_int}

Passed = Tensor | ctypes.Structure | ctypes.Array[Any] | float | None
"""What goes to an operation."""

_off: ContextVar[bool] = ContextVar("off", default=False)


@contextmanager
def disabled() -> Iterator[None]:
    """Within this block every operation is its torch reference."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def plain() -> bool:
    """Whether nothing but plain operations is wanted at the moment."""
    return _off.get()


@cache
def level() -> str | None:
    """The build that this processor runs, or None."""
    wanted = os.environ.get(SWITCH)
    if wanted in LEVELS:
        return wanted if _path(wanted).exists() else None
    if wanted == "torch":
        return None
    best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
    if best == "avx512" and all(name in Path("/proc/cpuinfo").read_text() for name in ("avx512_bf16", "avx512_vnni")):
        best = "avx512bf16"
    fitting = LEVELS[LEVELS.index(best) :]
    return next((name for name in fitting if _path(name).exists()), None)


def used() -> str | None:
    """The build that is loaded, or None where there is none that fits this package."""
    return level() if _library() is not None else None


def _path(name: str) -> Path:
    return HERE / f"fused-{name}.so"


@cache
def _library() -> Any:
    """The library, tied to the OpenMP that torch runs on: two pools of threads would fight for the cores."""
    chosen = level()
    if chosen is None:
        return None
    bundled = sorted(Path(torch.__file__).parent.glob("lib/libgomp*")) or [Path("libgomp.so.1")]
    try:
        ctypes.CDLL(str(bundled[0]), mode=ctypes.RTLD_GLOBAL)
        found = ctypes.CDLL(str(_path(chosen)))
        return found if found.layout() == LAYOUT else None
    except (OSError, AttributeError):
        return None


@cache
def _function(operation: str, dtype: torch.dtype) -> Any:
    found = getattr(_library(), f"{operation}_{NAMES[dtype]}")
    found.argtypes = [TYPES[letter] for letter in ARGUMENTS[operation]]
    found.restype = ctypes.c_int
    return found


def serves(tensor: Tensor) -> bool:
    """Whether the compiled operations take this tensor; shapes on the meta device pass through them without being computed."""
    if _off.get() or tensor.dtype not in NAMES or tensor.device.type not in ("cpu", "meta"):
        return False
    return _library() is not None


def run(operation: str, dtype: torch.dtype, *arguments: Passed) -> int:
    """Call an operation; tensors go as pointers to their first element, structures by reference."""
    if any(isinstance(one, Tensor) and one.is_meta for one in arguments):
        return 0
    found: int = _function(operation, dtype)(*map(_passed, arguments))
    return found


def _passed(one: Passed) -> Any:
    if isinstance(one, Tensor):
        return one.data_ptr()
    return ctypes.byref(one) if isinstance(one, ctypes.Structure | ctypes.Array) else one
