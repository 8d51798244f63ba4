"""Prefix tuning (Li and Liang, 2021, arXiv:2101.00190): keys and values before those of every prompt learn, in each layer."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.models.attention import plain
from tunesmith.models.prompt import PrefixEmbedding, PromptEmbedding

from .prompt import Prompt


class Prefix(Prompt):
    """A prompt for every layer: more room than `prompt`, and the model itself is untouched. It cannot be merged.

    It starts as what the model itself computes of real tokens, which the paper finds best, and learns without the paper's second network.
    """

    kind: Literal["prefix"] = "prefix"  # type: ignore[assignment]
    tokens: int = Field(20, ge=1)
    """Length of the prefix; 10 in the paper for tables to text, 200 for summaries; 20 is our choice."""
    text: str | None = None
    """Whose keys and values it starts as, over and over until there are enough; null draws tokens of the vocabulary."""

    def embedding(self, model: Any, chosen_P: Tensor) -> PromptEmbedding:
        """The model's embeddings with a prefix of these tokens' keys and values."""
        training = model.training
        with plain(model):
            cache = model.eval()(input_ids=chosen_P[None], use_cache=True).past_key_values
        model.train(training)
        kept = [one[0].transpose(0, 1) for layer in cache.layers for one in (layer.keys, layer.values)]
        return PrefixEmbedding(model, torch.stack(kept, 1).float())

    def peft_config(self, embedding: PromptEmbedding, config: Any) -> dict[str, Any]:
        """What peft's configuration says of this kind of prompt."""
        assert isinstance(embedding, PrefixEmbedding)
        _, heads, width = embedding.shape
        sizes = {"token_dim": heads * width, "num_attention_heads": heads, "encoder_hidden_size": heads * width}
        return {"peft_type": "PREFIX_TUNING", "prefix_projection": False, **sizes}
