"""Writes a model as a GGUF file, which llama.cpp and programs built on it serve (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Stored
from gguf import quants

from tunesmith.base import ModelError
from tunesmith.base.files import room

Kind = Literal["f32", "f16", "bf16", "q8_0"]
"""What matrices are stored in; vectors are float32 in each."""

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' `model_type` -> the format's architecture."""
HALVES_BESIDE = {"llama"}
"""Architectures whose rotary pairs lie side by side there, and in two halves of a head here."""
FILE_TYPES = dict(zip(get_args(Kind), ("ALL_F32", "MOSTLY_F16", "MOSTLY_BF16", "MOSTLY_Q8_0"), strict=True))
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[tuple[bool, str | None, tuple[tuple[str, Any], ...]], str] = {
    (False, None, (("ByteLevel", True),)): "gpt-2",
    (False, None, (("Digits", True), ("ByteLevel", True))): "smollm",
    (False, "NFC", (("Split", _WORDS % ""), ("ByteLevel", False))): "qwen2",
    (False, None, (("Split", _WORDS % "{1,3}"), ("ByteLevel", False))): "dbrx",
    (True, None, (("Split", _WORDS % "{1,3}"), ("ByteLevel", False))): "llama-bpe",
}
"""Whether whole words pass merges by, how text is normalised, and how it is split before BPE -> what the format calls it. Under none of these names does
llama.cpp normalise: what a person types is in NFC already."""


def check(config: Any, tokenizer: Any, where: str) -> None:
    """Refuse a model that the format, or this writer of it, cannot hold.

    Args:
        config: transformers' configuration of it.
        tokenizer: its tokenizer.
        where: what a message calls it.

    Raises:
        ModelError: says what stands in the way.
    """
    heads, head = getattr(config, "num_attention_heads", 0), _head(config)
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    windows = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if config.model_type not in ARCHITECTURES:
        wrong = f"only {', '.join(ARCHITECTURES)} can be written, and it is {config.model_type!r}"
    elif rotary != "default":
        wrong = f"its positions are scaled ({rotary}), which is not written"
    elif windows or (config.model_type == "mistral" and config.sliding_window):
        wrong = "its layers see a window of the text, which is not written"
    elif config.hidden_act != "silu":
        wrong = f"its activation is {config.hidden_act!r}, and silu is taken for granted there"
    elif getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        wrong = "its layers have biases, which readers drop"
    elif (config.model_type == "qwen2" and heads * head != config.hidden_size) or (
        config.model_type == "qwen3" and head != 128
    ):
        wrong = f"readers take heads of another size for granted than {head}"
    elif isinstance(tokenizer.chat_template, dict):
        wrong = f"it has {len(tokenizer.chat_template)} chat templates, and there is room for one"
    elif _split(tokenizer) is None:
        wrong = "its tokenizer splits text in a way that has no name there"
    else:
        return
    raise ModelError(f"model {where} cannot become a GGUF file: {wrong}; leave deploy.gguf out, or use llama.cpp's own converter on the folder that is deployed")  # fmt: skip


def write(model: Any, tokenizer: Any, path: Path, kind: Kind, begins: bool = False, ends: Collection[int] = ()) -> None:
    """Write weights, tokenizer and chat template; tensors are converted one at a time.

    Args:
        model: of transformers, with nothing but layers of its own.
        tokenizer: its tokenizer.
        path: the file.
        kind: what matrices are stored in; those whose rows q8_0's blocks of 32 do not divide are f16.
        begins: whether readers are to begin every prompt with the tokenizer's token for it, beyond what the chat template writes.
        ends: tokens that end an answer, its end token aside.

    Raises:
        MachineError: the disk has no room for it.
        ModelError: `check` refuses it, or a tensor has no name in the format.
    """
    config = model.config
    check(config, tokenizer, path.parent.name)
    architecture = ARCHITECTURES[config.model_type]
    tensors = dict(_named(model, architecture))
    places = {name: _place(tuple(tensor.shape), kind) for name, tensor in tensors.items()}
    with room(path, sum(count for *_, count in places.values())):
        writer = gguf.GGUFWriter(path, architecture)
        _describe(writer, config, kind)
        _tokenizer(writer, tokenizer, config)
        writer.add_add_bos_token(begins)
        for name, number in zip(("eot", "eom"), sorted(ends), strict=False):  # llama.cpp asks for no more
            getattr(writer, f"add_{name}_token_id")(number)
        for name, (stored, shape, dtype, count) in places.items():
            writer.add_tensor_info(name, shape, np.dtype(dtype), count, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(quants.quantize(_arranged(name, tensor, config), places[name][0]))
        writer.close()


def _named(model: Any, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under its name in the format; a head that is the embedding is not kept twice."""
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"GGUF has no name for {name}: what was learnt is no plain part of a {architecture}")
        yield found, tensor


def _place(shape: tuple[int, ...], kind: Kind) -> tuple[Stored, tuple[int, ...], type, int]:
    """How a tensor is stored, the shape and type of what is written, and its bytes."""
    stored = Stored[kind.upper()] if len(shape) > 1 else Stored.F32
    if stored == Stored.Q8_0 and shape[-1] % 32:
        stored = Stored.F16
    if stored in (Stored.F32, Stored.F16):
        dtype: type = np.float32 if stored == Stored.F32 else np.float16
        return stored, shape, dtype, int(np.prod(shape)) * np.dtype(dtype).itemsize
    shape = quants.quant_shape_to_byte_shape(shape, stored)
    return stored, shape, np.uint8, int(np.prod(shape))


def _arranged(name: str, tensor: torch.Tensor, config: Any) -> np.ndarray[Any, Any]:
    """A tensor in float32, its rows in the format's order."""
    array: np.ndarray[Any, Any] = tensor.detach().float().cpu().numpy()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None or ARCHITECTURES[config.model_type] not in HALVES_BESIDE:
        return array
    return array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _describe(writer: gguf.GGUFWriter, config: Any, kind: Kind) -> None:
    """The configuration."""
    head = _head(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _head(config: Any) -> int:
    """Numbers in a head's query."""
    found = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(found)


def _tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, config: Any) -> None:
    """Tokens, merges, what is special, and the chat template; embeddings beyond the last token get names of their own."""
    size = config.vocab_size
    bpe = _parts(tokenizer)["model"]
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    added, special = tokenizer.added_tokens_decoder, set(tokenizer.all_special_ids)
    kinds = []
    for number in range(size):
        own = number in special or (number in added and added[number].special)
        kinds.append(CONTROL if own else USER_DEFINED if number in added else NORMAL if number in words else UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(_split(tokenizer)))
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        own, described = (getattr(each, f"{name}_token_id", None) for each in (tokenizer, config))
        if isinstance(token := described if own is None else own, int):
            getattr(writer, f"add_{name}_token_id")(token)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _split(tokenizer: Any) -> str | None:
    """What the format calls the way in which text is split before BPE; None if it has no name for it."""
    parts = _parts(tokenizer)
    found = parts.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found]) if found.get("type") == "Sequence" else [found]
    if parts["model"]["type"] != "BPE" or any(step.get("add_prefix_space") or step.get("invert") for step in steps):
        return None
    tell = {"ByteLevel": "use_regex", "Digits": "individual_digits"}
    said = list[tuple[str, Any]]()
    for step in steps:
        kind = str(step.get("type"))
        said.append(
            (kind, (step.get("pattern") or {}).get("Regex") if kind == "Split" else step.get(tell.get(kind, "")))
        )
    whole, normal = bool(parts["model"].get("ignore_merges")), (parts.get("normalizer") or {}).get("type")
    return SPLITS.get((whole, normal, tuple(said)))


def _parts(tokenizer: Any) -> dict[str, Any]:
    """What tokenizer.json would hold."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found
