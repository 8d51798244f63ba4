"""What tests beside peft share: a vocabulary, the prompts that models are compared by, and adapters that have learnt something."""

import torch
from peft import PeftModel

from tunesmith.methods.adapters import trainable
from tunesmith.models.attention import plain

VOCABULARY = 97
IDS = torch.arange(3, 27).view(3, 8)
COMMON = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def logits(model):
    with torch.no_grad(), plain(getattr(model, "base_model", model) if isinstance(model, PeftModel) else model):
        return model(input_ids=IDS, use_cache=False).logits


def disturbed(loaded, adapter):
    """Attached, and moved."""
    adapter.attach(loaded, 1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(loaded.model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return loaded
