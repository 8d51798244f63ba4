"""Checkpoints: everything a run needs to go on, committed whole, verified when read, never pickled."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith.base import Artifact, ArtifactError, ModelError
from tunesmith.base.artifact import commit
from tunesmith.base.files import digest, read_json, room, write_json
from tunesmith.data.example import Row
from tunesmith.models.load import not_finite

KEEP = 2
"""How many of the newest stay: were the newest damaged, there is one to fall back to."""


@dataclass(frozen=True)
class Checkpoint:
    """A position in a run: steps done, and what the caller noted beside them."""

    path: Path
    step: int
    """Optimizer steps that were applied."""
    notes: dict[str, Any]


def save(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    notes: dict[str, Any],
    training: str = "",
) -> None:
    """Commit a checkpoint of a training below `folder` and drop those older than the newest `KEEP`.

    Raises:
        MachineError: the disk has no room for it; those before are as they were.
        ModelError: a weight or what the optimizer remembers of it is not finite; nothing is written.
    """
    weights = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
    state = _optimizer_tensors(parameters, optimizer)
    for what, tensors in (("weight", weights), ("optimizer state", state)):
        if odd := not_finite(tensors):
            raise ModelError(
                f"the {what} {odd} is not finite after {step} steps; the checkpoint before is kept; lower the learning rate"
            )
    work = folder / f"{called(step)}.partial"
    shutil.rmtree(work, ignore_errors=True)
    with room(work, sum(tensor.nbytes for tensor in (*weights.values(), *state.values()))):
        work.mkdir(parents=True)
        save_file(weights, work / "weights.safetensors")
        save_file(state, work / "optimizer.safetensors")
        write_json(work / "state.json", {"step": step, "notes": notes})
        commit(work, folder / called(step), {"stage": "checkpoint", "training": training, "metrics": {}})
    ahead = [
        path for path in _newest_first(folder) if path.name > called(step)
    ]  # damaged, or this step came from before it
    for old in (*ahead, *[path for path in _newest_first(folder) if path not in ahead][KEEP:]):
        shutil.rmtree(old)


def load_newest(folder: Path, warn: Callable[[str], None], training: str | None = None) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as committed; each damaged one, and where a training is named each of another, is named to `warn`."""
    for path in _newest_first(folder):
        try:
            artifact = Artifact.open(path)
            state = read_json(artifact / "state.json")
            if called(state["step"]) != path.name:
                raise ArtifactError(f"{path}: holds step {state['step']}; delete it")
            if training not in (None, artifact.manifest.get("training")):
                raise ArtifactError(f"{path}: is of another training; delete it")
        except (
            ArtifactError,
            IsADirectoryError,
            NotADirectoryError,
            FileNotFoundError,
        ) as error:  # not what may pass, such as a disk that does not answer
            warn(f"checkpoint passed over: {error}")
            continue
        return Checkpoint(path, state["step"], state["notes"])
    return None


def training_of(settings: Any, rows: Sequence[Row]) -> str:
    """A digest of all that a training's result depends on: its settings, as a JSON value, and its rows' tokens. Numbers that a model said of them may differ by machine."""
    content = hashlib.sha256(digest(settings).encode())
    for row in rows:
        for each in row.sequences:
            content.update(each.tokens.tobytes() + each.learn.tobytes())
    return content.hexdigest()


def restore(
    checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put weights, and the optimizer's state if one is given, back as they were."""
    tensors = load_file(checkpoint.path / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    places = {name: number for number, name in enumerate(_names(parameters, optimizer))}
    for key, tensor in load_file(checkpoint.path / "optimizer.safetensors").items():
        name, slot = key.rsplit("|", 1)
        state.setdefault(places[name], {})[slot] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order the optimizer numbers them."""
    by_identity = {id(parameter): name for name, parameter in parameters.items()}
    return [by_identity[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _names(parameters, optimizer)
    state = optimizer.state_dict()["state"]
    return {
        f"{names[place]}|{slot}": value.contiguous() for place, slots in state.items() for slot, value in slots.items()
    }


def called(step: int) -> str:
    """The name of a checkpoint's folder; later steps have greater names."""
    return f"step-{step:08d}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if not path.name.endswith(".partial")), reverse=True)
