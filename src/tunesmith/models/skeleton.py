"""A model without numbers: its layers and their shapes on torch's `meta` device, from the configuration alone."""

from typing import Any

import torch

from tunesmith.base import ModelError

from . import attention
from .load import DTYPES, drop_nothing
from .quantize import KINDS, quantise


def skeleton(config: Any, precision: str) -> Any:
    """The model of a transformers config on the `meta` device, in training mode; its weights take no memory.

    Raises:
        ModelError: transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[precision], attn_implementation=attention.NAME
            )
    except (ValueError, ImportError, TypeError) as error:
        raise ModelError(
            f"model of type {config.model_type!r}: cannot be built: {str(error).splitlines()[0]}"
        ) from None
    if precision in KINDS:
        quantise(model, precision, DTYPES[precision])
    drop_nothing(model)
    return model.train()
