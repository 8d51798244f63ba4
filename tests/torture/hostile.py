"""Hostile artifacts: files that would run code, write or read elsewhere, claim more than they hold or never end, and what opens each of them."""

import gzip
import io
import json
import os
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.base import DataError
from tunesmith.base.files import write_json
from tunesmith.data.sources import open_source
from tunesmith.data.template import Template
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.merging.peft_file import read_corrections
from tunesmith.models.load import load, load_tokenizer
from tunesmith.stages.recipe import read_recipe

Open = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One hostile artifact."""

    name: str
    prepare: Callable[[Path], object]
    """Makes it, in a folder that holds a sound small model as `model`."""
    open: Open
    """Opens it as tunesmith does."""
    harmless: bool = False
    """Whether it may be opened, since nothing hostile in it is looked at."""


def payload(canary: Path) -> bytes:
    """A pickle that makes a file when it is read."""
    return b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


def model(folder: Path) -> object:
    return load(str(folder / "model"), "fp32")


@dataclass(frozen=True)
class Rows:
    """Every row of a file; a file without a row that could be used is one that prepare refuses."""

    name: str

    def __call__(self, folder: Path) -> object:
        found = list(open_source(str(folder / self.name)))
        if not any(record.value for record in found):
            raise DataError(f"{folder / self.name}: no usable row: {found[0].defect if found else 'empty'}")
        return found


def recipe(folder: Path) -> object:
    return read_recipe(folder / "recipe.yaml")


def gguf(folder: Path) -> object:
    os.environ["TUNESMITH_CACHE"] = str(folder / "cache")
    return load_tokenizer(str(folder / "model.gguf"))


def adapter(folder: Path) -> object:
    loaded = load(str(folder / "model"), "fp32")
    LoRA(rank=4).restore(loaded, folder / "adapter")
    return loaded


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def pickled(name: str, *absent: str) -> Callable[[Path], object]:
    """A pickle under a name, in place of files that are taken away."""

    def make(folder: Path) -> None:
        for one in absent:
            (folder / one).unlink()
        content = payload(folder.parent / "canary")
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    return make


def torch_saved(folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, folder / "model" / "model.safetensors")


def changed(name: str, **fields: Any) -> Callable[[Path], object]:
    """A JSON file of the model with other fields."""

    def make(folder: Path) -> None:
        path = folder / "model" / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))
        (folder / "model" / "evil.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')")

    return make


def tensors(harm: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """The model's weights with something done to them."""

    def make(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        found = load_file(path)
        harm(found)
        save_file(found, path, {"format": "pt"})

    return make


def indexed(name: str) -> Callable[[Path], object]:
    """Weights that lie elsewhere."""

    def make(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        names = list(load_file(path))
        path.rename(folder / "elsewhere.safetensors")
        place = name.format(folder)
        write_json(path.with_name(f"{path.name}.index.json"), {"weight_map": dict.fromkeys(names, place)})

    return make


def header(length: int, text: bytes) -> bytes:
    """A safetensors file with a header that says it is so long."""
    return struct.pack("<Q", length) + text


def tensor_at(first: int, last: int) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [first, last]}}).encode()


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: str, value: int | bytes) -> bytes:
    written = struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<I", 8) + text(value)
    return text(name.encode()) + written


def gguf_file(kv: int, tensors: int, *parts: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, kv) + b"".join(parts)


ABSOLUTE = Path(tempfile.gettempdir()) / f"canary-{os.getpid()}"
"""Where an archive with an absolute path would write."""
LLAMA = key("general.architecture", b"llama")


def archive(kind: str, name: str) -> Callable[[Path], object]:
    """A zip or tar with a member of that name."""

    def make(folder: Path) -> None:
        if kind == "zip":
            with zipfile.ZipFile(folder / "rows.zip", "w") as file:
                file.writestr(name, "x")
            return
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            member = tarfile.TarInfo(name)
            if kind == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
        (folder / "rows.jsonl.gz").write_bytes(gzip.compress(made.getvalue()))

    return make


def bomb(name: str, piece: bytes, count: int) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        with gzip.open(folder / name, "wb", compresslevel=6) as file:
            for _ in range(count):
                file.write(piece)

    return make


def saved_data(entry: str) -> Callable[[Path], object]:
    """A folder of `datasets` that names a file elsewhere."""

    def make(folder: Path) -> None:
        (folder / "secret.arrow").write_bytes(b"secret")
        (folder / "data").mkdir()
        write_json(folder / "data" / "state.json", {"_data_files": [{"filename": entry.format(folder)}]})

    return make


def learnt(harm: Callable[[dict[str, torch.Tensor]], object] = lambda found: None, **config: Any) -> Callable[[Path], object]:  # fmt: skip
    """An adapter of the model with something done to its tensors or its configuration."""

    def make(folder: Path) -> None:
        loaded = load(str(folder / "model"), "fp32")
        LoRA(rank=4).attach(loaded, 0)
        LoRA(rank=4).save(loaded, folder / "adapter")
        path = folder / "adapter" / "adapter_model.safetensors"
        found = load_file(path)
        harm(found)
        save_file(found, path)
        about = folder / "adapter" / "adapter_config.json"
        write_json(about, {**json.loads(about.read_text()), **config})

    return make


def first(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda found: next(iter(found.values())).view(-1)[:1].fill_(value)


def every(part: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda found: found.update({name: part(one).contiguous() for name, one in found.items()})


def corrections(folder: Path) -> object:
    return read_corrections(folder / "adapter")


@dataclass(frozen=True)
class Talk:
    """A chat template, used; `{canary}` in its source is where code that runs would write."""

    source: str

    def text(self, folder: Path) -> str:
        """As it comes with a model in a folder."""
        return self.source.format(canary=folder.parent / "canary")

    def __call__(self, folder: Path) -> object:
        talk = [{"role": "user", "content": "a"}]
        return Template(self.text(folder))([{"messages": talk}], "model")


def nothing(folder: Path) -> None:
    pass
