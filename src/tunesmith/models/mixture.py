"""A dense decoder made a mixture of experts (Komatsuzaki et al., 2022, arXiv:2212.05055), as one of transformers' own architectures."""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.base import ModelError

NAME = "tunesmith"
"""Of the grouped computation below, among transformers' own."""
MIXTURES = {"llama": "mixtral", "mistral": "mixtral", "olmo2": "flex_olmo", "qwen3": "qwen3_moe"}
"""Architectures, and those that are the same but for their feed-forward layers, which route to experts."""
ABOUT = frozenset({"model_type", "architectures", "transformers_version", "dtype"})
"""Fields of a configuration that say which one it is."""


def upcycle(model: Any, experts: int, active: int, seed: int) -> Any:
    """A mixture whose experts are all the dense feed-forward layer, so that it answers as the dense model does; other weights are the same ones.

    Args:
        model: dense; it is of no use afterwards.
        experts: of each layer.
        active: how many of them compute a token, weighted by the softmax of their scores.
        seed: of the routers, which are drawn as transformers draws them.

    Raises:
        ModelError: transformers has no mixture of this architecture, or none with its biases.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, grouped_experts)
    config = _config(model, experts, active)
    with torch.device("meta"):
        mixture = AutoModelForCausalLM.from_config(config, attn_implementation=model.config._attn_implementation)
    weights, generator = dict(model.state_dict()), torch.Generator().manual_seed(seed)
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}.mlp."
        gate, up, down = (weights.pop(f"{layer}{name}_proj.weight") for name in ("gate", "up", "down"))
        weights[f"{layer}experts.gate_up_proj"] = torch.cat([gate, up])[None].repeat(experts, 1, 1)
        weights[f"{layer}experts.down_proj"] = down[None].repeat(experts, 1, 1)
        router = torch.randn(experts, gate.shape[1], generator=generator) * config.initializer_range
        weights[f"{layer}gate.weight"] = router.to(gate)
    try:
        mixture.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(
            f"adapter moe: {config.model_type} cannot hold this {model.config.model_type}: {reason}"
        ) from None
    mixture.tie_weights()
    mixture.model.rotary_emb, mixture.generation_config = model.model.rotary_emb, model.generation_config
    mixture.set_experts_implementation(NAME)
    return mixture.train(model.training)


def _config(model: Any, experts: int, active: int) -> Any:
    """The mixture's configuration."""
    from transformers import AutoConfig

    dense = model.config
    if dense.model_type not in MIXTURES:
        there = ", ".join(sorted(MIXTURES))
        raise ModelError(f"adapter moe: transformers has no mixture of {dense.model_type!r}; it takes {there}")
    kind, fields = MIXTURES[dense.model_type], dense.to_dict()
    known = {*AutoConfig.for_model(kind).to_dict(), "head_dim"} - ABOUT
    sizes = {
        "num_local_experts": experts, "num_experts": experts, "num_experts_per_tok": active, "norm_topk_prob": True,
        "moe_intermediate_size": dense.intermediate_size, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip
    chosen = {name: value for name, value in {**fields, **sizes}.items() if name in known}
    return AutoConfig.for_model(kind, **chosen, dtype=dense.dtype)


def grouped_experts(experts: Any, hidden_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The weighted sum [T, D] of what each token's experts make of it; each expert computes its own tokens, in one product.

    Args:
        experts: one of transformers' modules, with weights `gate_up_proj` [E, 2 I, D] and `down_proj` [E, D, I].
        hidden_TD: the tokens.
        expert_TK: int64, their experts.
        weight_TK: what each of them counts.
    """
    active = expert_TK.shape[1]
    order_P = expert_TK.flatten().argsort(stable=True)
    token_P = order_P // active
    parts = []
    for number, mine_ND in enumerate(torch.split(hidden_TD[token_P], _counts(expert_TK, experts.num_experts))):
        gate, up = nn.functional.linear(mine_ND, experts.gate_up_proj[number]).chunk(2, -1)
        parts.append(nn.functional.linear(experts.act_fn(gate) * up, experts.down_proj[number]))
    weighted_PD = torch.cat(parts) * weight_TK.flatten()[order_P, None]
    return torch.zeros_like(hidden_TD, dtype=weighted_PD.dtype).index_add(0, token_P, weighted_PD).to(hidden_TD.dtype)


def _counts(expert_TK: Tensor, experts: int) -> list[int]:
    """Tokens of each expert; in a rehearsal, which has no numbers, as many for each."""
    if not expert_TK.is_meta:
        return torch.bincount(expert_TK.flatten(), minlength=experts).tolist()
    share = expert_TK.numel() // experts
    return [share] * (experts - 1) + [expert_TK.numel() - share * (experts - 1)]


class Balance:
    """How unevenly the routers spread the tokens of the last pass (Fedus et al., 2021, arXiv:2101.03961, eq. 4 to 6), as transformers counts it:
    E times the sum over experts of (tokens they got) (mean probability they were given), both in the mean over all layers; at best, `active`."""

    def __init__(self, mixture: Any) -> None:
        self.scores: list[Tensor] = []
        self.active = mixture.config.num_experts_per_tok
        mixture.model.register_forward_pre_hook(lambda *given: self.scores.clear())
        self.layers = len(mixture.model.layers)
        for layer in mixture.model.layers:
            layer.mlp.gate.register_forward_hook(lambda router, given, found: self._note(found[0]))

    def _note(self, score_NE: Tensor) -> None:
        """Of the pass itself: a layer that the backward computes again tells nothing new, and would keep its graph."""
        if len(self.scores) < self.layers:
            self.scores.append(score_NE)

    def __call__(self) -> Tensor:
        """Scalar, float32; differentiable."""
        share_TE = torch.cat([score_NE.float() for score_NE in self.scores]).softmax(-1)
        chosen_TE = torch.zeros_like(share_TE).scatter(1, share_TE.topk(self.active, 1).indices, 1.0)
        return share_TE.shape[1] * (chosen_TE.mean(0) * share_TE.mean(0)).sum()
