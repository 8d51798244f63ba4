"""Loads a model, found by name, folder, GGUF file or hub id, ready for forest batches."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunesmith.base import ModelError
from tunesmith.base.files import digest, known_sha256
from tunesmith.data.render import Renderer
from tunesmith.kernels.memory import give_back, keep_steady
from tunesmith.kernels.products import fast_float32
from tunesmith.kernels.quantised_linear import QuantisedLinear

from . import attention, fused
from .find import load_tokenizer as load_tokenizer
from .find import locate as locate
from .gguf import notes
from .prompt import load_beside
from .quantize import KINDS, quantise
from .vetting import said, vet, vet_loaded, vet_weights

ABOUT = ("conversion.json", "manifest.json")
"""Files of a model's folder that say how it came about."""
Precision = Literal["auto", "fp32", "bf16", "int8", "nf4"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "nf4": torch.bfloat16}
"""What is computed in beside the products of each precision."""


@dataclass
class Loaded:
    """A model in memory with its tokenizer and what is known about it."""

    name: str
    folder: Path
    model: Any
    tokenizer: Any
    precision: str
    """fp32, bf16, int8 or nf4: what matrix products are computed in; with nf4 that is bf16, of weights kept in four bits."""
    forest: bool = True
    """Whether its attention takes forest batches; else sequences are padded."""
    fuse: bool = True
    """Whether fused operations may compute it, where they can."""
    checkpointing: bool = False
    """Whether the backward computes layers again instead of the forward keeping what they compute (activation checkpointing)."""
    today: str | None = None
    """The day (YYYY-MM-DD) that its template tells, if it tells one and not the clock's."""
    notes: list[str] = field(default_factory=list)
    penalty: Callable[[], Tensor] | None = None
    """What the model itself adds to the loss while it learns, for each thing that the objective counts: a scalar of the last pass."""
    turn: Callable[[], None] = field(default=lambda: None, repr=False)
    """Makes the model this one, where several share their weights' memory; called before it computes."""
    _decoder: fused.Decoder | None = field(default=None, repr=False)

    def decoder(self) -> fused.Decoder | None:
        """The fused form of the model, up to date with its parameters; None where only the generic path serves."""
        self.turn()
        if not (self.forest and self.fuse) or fused.misfit(self) is not None:
            return None
        dtype = DTYPES[self.precision]
        held = self._decoder
        if held is None or held.dtype != dtype or held.key != fused.structure(self.model):
            self._decoder = held = fused.Decoder(self.model, dtype)
            give_back()  # the weights it took over, and what loading left
        else:
            held.refresh()
        return held

    def renderer(self) -> Renderer:
        """Turns conversations into its tokens."""
        return Renderer(self.tokenizer, today=self.today)

    @property
    def prefix(self) -> tuple[int, ...]:
        """Tokens that an adapter puts before every sequence; they stand for embeddings of its own."""
        found: tuple[int, ...] = getattr(self.model.get_input_embeddings(), "prefix", ())
        return found

    def release(self) -> None:
        """Undo what the fused form did to the layers; call before other programs' code saves the model."""
        if self._decoder is not None:
            self._decoder.release()
            self._decoder = None

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that its positions allow, which with longrope are those of short texts; None where there is no end to them."""
        return longest(self.model.config)

    @property
    def reach(self) -> int | None:
        """Tokens beyond which longrope would have other frequencies, which are not used here; None with positions of any other kind."""
        return _reach(self.model.config)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found


def longest(config: Any) -> int | None:
    """As `Loaded.longest`, of a configuration alone."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return _reach(config) or found


def _reach(config: Any) -> int | None:
    rotary = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return rotary["original_max_position_embeddings"] if rotary.get("rope_type") == "longrope" else None


def load_config(folder: Path) -> Any:
    """The model's configuration.

    Raises:
        ModelError: it is unreadable, wants to run code of its own, or is not of a decoder.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ModelError(f"model {folder}: config.json cannot be used: it holds a {type(raw).__name__}, no mapping")
        vet(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a stranger's file makes transformers stumble over
        raise ModelError(f"model {folder}: config.json cannot be used: {said(error)}") from None
    if config.is_encoder_decoder or config.model_type not in DECODERS or config.model_type in ENCODERS:
        raise ModelError(
            f"model {folder}: {config.model_type!r} is not a decoder; tunesmith trains models that continue text"
        )
    return config


ENCODERS = frozenset(
    {
        "bert",
        "roberta",
        "electra",
        "camembert",
        "xlm-roberta",
        "roformer",
        "megatron-bert",
        "rembert",
        "ernie",
        "xlm",
        "big_bird",
    }
)
"""Encoders that transformers lists among decoders since they can be switched to be one."""


SCORER = "ForSequenceClassification"
"""How transformers' names of models end that score what they read."""
SPARE = ("lm_head.weight",)
"""What they have no need of."""


def resolve_precision(precision: Precision) -> str:
    """What `auto` means here: bf16 where the processor multiplies it natively, else fp32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def served(precision: Precision, wanted: Precision = "auto") -> Precision:
    """What a model is evaluated and served in after training in `precision`: what `evaluate.precision` wants, else never few bits."""
    if wanted != "auto":
        return wanted
    return "auto" if precision in KINDS else precision


def load(name: str, precision: Precision = "auto", *, scorer: bool = False, today: str | None = None) -> Loaded:
    """Load a model for training and serving.

    Args:
        name: as `locate` takes it.
        precision: what products are computed in.
        scorer: whether it may be one that scores answers and writes none; see `tunesmith.models.scorer`.
        today: the day (YYYY-MM-DD) that its template tells, if it tells one and not the clock's.

    Raises:
        ModelError: it is missing, damaged, or not a decoder; or int8 is asked for on a GPU.
    """
    attention.register()
    keep_steady()
    if not torch.cuda.is_available():  # there the same switch would mean TF32
        fast_float32()
    folder = locate(name)
    config = load_config(folder)
    if not scorer and (config.architectures or ("",))[0].endswith(SCORER):
        raise ModelError(
            f"model {folder}: scores answers and writes none; use it as a grader, kind reward_model, or take its base"
        )
    chosen = resolve_precision(precision)
    if chosen == "int8" and torch.cuda.is_available():
        raise ModelError("precision: int8 is for CPUs; set precision=bf16")
    model = _read(
        folder, config, "auto" if chosen in KINDS else DTYPES[chosen], scorer
    )  # few bits are made of what is stored
    dropped = drop_nothing(model)
    if chosen in KINDS:
        quantise(model, chosen, DTYPES[chosen])
        give_back()
    if torch.cuda.is_available():
        model.to("cuda")
    loaded = Loaded(name, folder, model, load_tokenizer(name), chosen, today=today, notes=notes(folder))
    loaded.forest = attention.adopt(model)
    said_of = {
        "dropout: config.json's own is not applied; an adapter's is": dropped,
        f"positions: those of texts of up to {loaded.reach or 0:,} tokens (longrope); longer ones are refused": loaded.reach,
        "attention: forest batches are not exact for this architecture; sequences are padded instead": not loaded.forest,
    }
    loaded.notes.extend(note for note, holds in said_of.items() if holds)
    return loaded


def _read(folder: Path, config: Any, dtype: str | torch.dtype, scorer: bool) -> Any:
    """A model of a folder's weights, all of which were looked at.

    Raises:
        ModelError: they are damaged, or not those of the architecture.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        vet_weights(folder, config)
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True, output_loading_info=True
        )  # fmt: skip
        vet_loaded(folder, model, told, SPARE if scorer else ())
        load_beside(model, folder)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  as above
        raise ModelError(f"model {folder}: its weights cannot be loaded: {said(error)}") from None
    if odd := not_finite(dict(model.named_parameters())):
        raise ModelError(f"model {folder}: its weight {odd} holds numbers that are not finite; get the model again")
    return model.eval()


def drop_nothing(model: nn.Module) -> bool:
    """Switch a model's own dropout off, which not all of its forms have; whether there was any."""
    found = False
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if (
                isinstance(value, float)
                and value
                and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout)))
            ):
                setattr(module, name, 0.0)
                found = True
    return found


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first that holds nan or infinity; nothing beside them is allocated."""
    floating = ((name, one) for name, one in tensors.items() if one.is_floating_point() and one.numel())
    return next((name for name, one in floating if not torch.stack(one.detach().aminmax()).isfinite().all()), None)


def fingerprint(folder: Path) -> str:
    """One digest over the names and bytes of a model folder's weights and tokenizer."""
    wanted = sorted(
        path for pattern in ("*.safetensors", "*.json", "*.jinja", "*.model") for path in folder.glob(pattern)
    )
    return digest({path.name: known_sha256(path) for path in wanted if path.name not in ABOUT})


def cast(model: Any, dtype: torch.dtype) -> Any:
    """Bring a model's weights to a dtype, in place; what is no weight, such as rotary frequencies, stays in float32, as where it is loaded so."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def parameters(model: nn.Module) -> int:
    """Count of distinct parameters (tied weights once), however many of them a byte holds."""
    packed = [layer for layer in model.modules() if isinstance(layer, QuantisedLinear)]
    beyond = sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in packed)
    return beyond + sum(parameter.numel() for parameter in model.parameters())
