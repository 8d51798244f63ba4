"""Finds a model by name, folder, GGUF file or hub id, and loads its tokenizer; needs no torch for a model that is converted already."""

from pathlib import Path
from typing import Any

from tunesmith.base import ModelError, Run
from tunesmith.base.files import read_json

from .gguf import EMBEDDED, convert, embedded
from .vetting import said, vet

PARTS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Files of a model's folder that are read."""
PLAIN = "TokenizersBackend"
"""transformers' name for the class that takes everything from tokenizer.json."""


def locate(name: str) -> Path:
    """The folder with config, weights and tokenizer that `name` stands for; converts and caches a GGUF file.

    Args:
        name: an embedded model's name, a Hugging Face folder, the folder of a run, a GGUF file, or a hub id `owner/name`.

    Raises:
        ModelError: nothing of that name can be had.
        ArtifactError: it is a run that has not deployed a model.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED:
        return convert(embedded(name), name)
    if path.suffix == ".gguf" and path.is_file():
        return convert(path, path.stem)
    if (path / "config.json").is_file():
        return path
    if (path / "stages.json").is_file():
        return Run(path).last("deploy").path / "model"
    if path.is_dir():
        raise ModelError(
            f"model {name}: the folder has no config.json; give a folder that transformers' save_pretrained wrote"
        )
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return _from_hub(name)
    raise ModelError(
        f"model {name!r}: not found; give {', '.join(EMBEDDED)}, a Hugging Face folder, a .gguf file, or a hub id owner/name"
    )


def files_of(name: str) -> tuple[Path, ...]:
    """The files that make a model what it is, in order, by the same names as `locate`; none of an embedded model, of which there is but one.

    Raises:
        ModelError: as `locate`.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED:
        return ()
    if path.suffix == ".gguf" and path.is_file():
        return (path,)
    folder = locate(name)
    return tuple(sorted({file for pattern in PARTS for file in folder.glob(pattern)}))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(PARTS)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model {name!r}: no such folder here, and the hub did not give it ({reason}); check the name or the network"
        ) from None


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, by the same names as `locate`.

    Raises:
        ModelError: there is none, or it is not one of the `tokenizers` library.
    """
    folder = locate(name)
    try:
        vet(folder)
        tokenizer = _tokenizer_class(folder).from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        fast = tokenizer.is_fast
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a stranger's file makes transformers stumble over
        raise ModelError(f"model {name}: its tokenizer cannot be loaded: {said(error)}") from None
    if not fast or tokenizer.eos_token_id is None:
        raise ModelError(
            f"model {name}: its tokenizer has no fast form or no end token; save it with tokenizer.json and an eos_token"
        )
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """What reads the tokenizer in a folder.

    AutoTokenizer asks the model's configuration, and with it comes most of transformers, and torch: four seconds. What was converted
    here is of the plain class, and says so.
    """
    if (folder / "conversion.json").is_file() and read_json(folder / "tokenizer_config.json")[
        "tokenizer_class"
    ] == PLAIN:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer
