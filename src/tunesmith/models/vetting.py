"""What is looked at in a model's folder before anything in it is used: nothing may run code, point elsewhere, or claim more than it holds."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tunesmith.base import ModelError

COUNTS = re.compile(r"(num|n)_.*(layer|expert)")
"""Names of a configuration's fields that say how many modules are built; each has tensors of its own, or shares one with its like."""
SIZES = re.compile(r"size|dim")
"""Names of those that say how large weights are."""
DESCRIPTIONS = ("config.json", "tokenizer_config.json", "generation_config.json")


def vet(folder: Path) -> None:
    """Refuse a folder that asks for code other than transformers' own, or whose model is somewhere else.

    Raises:
        ModelError: with the file and what it asks for.
    """
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"model {folder}: adapter_config.json makes it an adapter of another model; give that one, or merge them first"
        )
    for file in (folder / name for name in DESCRIPTIONS if (folder / name).is_file()):
        for name, value in _fields(file):
            if name == "auto_map" and value:
                raise ModelError(
                    f"model {folder}: {file.name} wants to run its own code (auto_map), which is refused; use an architecture of transformers"
                )
            if name.endswith("_implementation") and isinstance(value, str) and re.search("[/:]", value):
                raise ModelError(
                    f"model {folder}: {file.name} wants to run code from the hub ({name}: {value!r}), which is refused; remove the field"
                )
            if name == "tokenizer_class" and "Tokenizer" not in str(value or "Tokenizer"):
                raise ModelError(f"model {folder}: {file.name}: {value!r} is no tokenizer; remove tokenizer_class")
            if name == "quantization_config" and value:
                raise ModelError(
                    f"model {folder}: its weights are quantised, which other programs' code would have to undo; give the model that it was made of"
                )


def vet_weights(folder: Path, config: Any) -> None:
    """Refuse a folder whose weights lie elsewhere, or whose configuration would build more modules than there are weights.

    Raises:
        ModelError: with the name and what is wrong.
        OSError, ValueError, SafetensorError: a file cannot be read.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if outside := next((name for name in places.values() if Path(name).name != name), None):
            raise ModelError(f"model {folder}: {index.name} names {outside!r}, which is not a file in the folder")
        files = sorted(set(places.values()))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise ModelError(
            f"model {folder}: its weights cannot be loaded: there is no model.safetensors, and other formats, which may hold code, are not read"
        )
    shapes = [shape for name in files for shape in _shapes(folder / name)]
    layers, width = config.get_text_config().num_hidden_layers, config.get_text_config().hidden_size
    if layers < 1 or not any(width in shape for shape in shapes):
        raise ModelError(
            f"model {folder}: config.json cannot be used: it says that there are {layers:,} layers of width {width:,}, and the weights are not of this configuration"
        )
    elements = sum(map(math.prod, shapes))
    for name, value in config.to_dict().items():
        most = len(shapes) if COUNTS.match(name) else elements if SIZES.search(name) else None
        if most is not None and isinstance(value, int) and value > most:
            raise ModelError(
                f"model {folder}: config.json says {name}: {value:,}, which its {len(shapes):,} tensors of {elements:,} numbers cannot be; the weights are not of this configuration"
            )


def vet_loaded(folder: Path, model: Any, told: dict[str, Any], spare: tuple[str, ...] = ()) -> None:
    """Refuse a model of which a weight was not in its files, and is now random, or whose files hold layers that it has no room for.

    Args:
        folder: its folder.
        model: the model.
        told: what transformers says of loading it: `missing_keys`, `unexpected_keys`.
        spare: names that may be missing.

    Raises:
        ModelError: names the first such weight.
    """
    if missing := sorted(set(told["missing_keys"]) - set(spare)):
        raise ModelError(
            f"model {folder}: its weights cannot be loaded: {missing[0]} is missing in its files; fetch it again"
        )
    own = {_likeness(name) for name, _ in model.named_parameters()}
    if odd := sorted(name for name in told["unexpected_keys"] if _likeness(name) in own):
        raise ModelError(
            f"model {folder}: its weights cannot be loaded: {odd[0]} has no place in what config.json describes"
        )


def said(error: Exception) -> str:
    """What an error of other programs says, in one line that is not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _shapes(file: Path) -> list[list[int]]:
    """Shapes of the tensors in a file; reads only its header."""
    with safe_open(file, "pt") as found:
        return [found.get_slice(name).get_shape() for name in found.keys()]  # noqa: SIM118  it is no mapping


def _likeness(name: str) -> str:
    """A parameter's name without its numbers: equal for all layers."""
    return re.sub(r"\d+", "#", name)


def _fields(file: Path) -> Iterator[tuple[str, Any]]:
    """Every field at any depth of a JSON file, with its value."""
    return _within(json.loads(file.read_text(encoding="utf-8")))


def _within(value: Any) -> Iterator[tuple[str, Any]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in below:
        yield str(name), part
        yield from _within(part)
