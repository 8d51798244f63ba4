"""Low-rank corrections from and to an adapter's folder in peft's format, without a model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tunesmith.base import ModelError
from tunesmith.base.files import read_json
from tunesmith.models.learnt import read_learnt

from ..adapters.injected import PREFIX, changes_base
from ..adapters.lora import LoRA
from ..optimizers.hybrid import FILE as MOVES
from .base import Correction

KINDS = ("lora_A.weight", "lora_B.weight")
OTHERWISE = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "alora_invocation_tokens",
    "use_qalora",
)
"""Fields of a configuration with which an adapter is more than one correction of one scale to each weight."""


def rank_of(folder: Path) -> int | None:
    """Rank of an adapter that adds low-rank corrections and does nothing else; None for all others. Reads no weights."""
    if not (folder / "adapter_config.json").exists() or (folder / MOVES).exists():
        return None
    config = _config(folder)
    plain = (
        config["peft_type"] == "LORA" and not any(config.get(name) for name in OTHERWISE) and not changes_base(config)
    )
    return int(config["r"]) if plain and config.get("bias", "none") == "none" else None


def _config(folder: Path) -> dict[str, Any]:
    """What an adapter's folder says of it.

    Raises:
        ModelError: it cannot be read, or lacks its kind or its rank.
    """
    path = folder / "adapter_config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {str(error).splitlines()[0][:200]}") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ModelError(f"{path}: names no peft_type; give the folder of an adapter that peft or tunesmith wrote")
    rank = config.get("r", 1)
    if config["peft_type"] == "LORA" and (type(rank) is not int or rank < 1 or "r" not in config):
        raise ModelError(f"{path}: its rank 'r' is no number from 1 up")
    return config


def read_corrections(folder: Path) -> dict[str, Correction]:
    """Every correction, by the path of its layer in the model; float32."""
    config, tensors = _config(folder), read_learnt(folder / "adapter_model.safetensors")
    rank = config["r"]
    if any(len(tensor) != rank for name, tensor in tensors.items() if name.endswith(KINDS[0])):
        raise ModelError(f"{folder}: adapter_config.json says that the rank is {rank}, and its tensors have another")
    root = math.sqrt(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))
    found = {name.removeprefix(PREFIX): tensor.float() * root for name, tensor in tensors.items()}
    down, up = KINDS
    paths = sorted(name.removesuffix(f".{down}") for name in found if name.endswith(down))
    return {path: Correction(found[f"{path}.{down}"], found[f"{path}.{up}"]) for path in paths}


def write_corrections(folder: Path, corrections: Mapping[str, Correction], base: Path) -> LoRA:
    """Write corrections of one rank; the adapter that reads them."""
    rank = next(iter(corrections.values())).rank
    names = {path.rsplit(".", 1)[-1]: None for path in sorted(corrections)}
    adapter = LoRA(rank=rank, alpha=rank, targets=tuple(names))
    tensors = {
        f"{path}.{kind}": tensor.contiguous()
        for path, one in corrections.items()
        for kind, tensor in zip(KINDS, (one.down_RI, one.up_OR), strict=True)
    }
    adapter.write(folder, tensors, names, base)
    return adapter


def silent(like: Correction, rank: int) -> Correction:
    """What a run that left a layer as it was adds to it."""
    down_RI, up_OR = like.down_RI, like.up_OR
    return Correction(torch.zeros(rank, down_RI.shape[1]), torch.zeros(len(up_OR), rank))
