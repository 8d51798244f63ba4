"""Reads what was learnt from files, and believes nothing that no training leaves."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.base import ModelError

from .vetting import said

LARGEST = 65504.0
"""The largest number of float16."""


def read_learnt(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that something learnt is kept in.

    Raises:
        ModelError: it is missing or damaged, or holds a value that nothing learnt can have.
    """
    try:
        found: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read as safetensors: {said(error)}") from None
    check_learnt(found, file)
    return found


def check_learnt(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Refuse what no training leaves: NaN, infinity, or numbers beyond float16.

    Raises:
        ModelError: with the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool((tensor.abs() <= LARGEST).all()):  # NaN is not
            raise ModelError(f"{where}: {name} holds a number that is NaN or beyond {LARGEST:,.0f}: it was not learnt")
