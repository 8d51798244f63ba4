"""Some layers learn: the last ones (Lee et al., 2019, arXiv:1911.03090), or those that are named."""

from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field

from tunesmith.base import ModelError
from tunesmith.models.layers import decoder_layers

from .weights import Weights


class Layers(Weights):
    """The top of the model learns, its lower layers stay: a part of full fine-tuning's memory and time, since no gradient goes below."""

    kind: Literal["layers"] = "layers"
    last: int = Field(2, ge=0)
    """So many of the last decoder layers learn, and the norm behind them; a quarter of all came close to tuning all in Lee et al., 2019 (arXiv:1911.03090). Two is our choice."""
    names: tuple[str, ...] = ()
    """Parameters that learn beside these, by name, with * for any text: `*.mlp.*`, `model.layers.0.*`, `lm_head*`."""

    def chosen(self, model: Any, seed: int) -> set[str]:
        """Those of the last layers, and those that fit a name."""
        layers = decoder_layers(model)
        if self.last > len(layers):
            raise ModelError(f"adapter.last: this model has {len(layers)} layers, not {self.last}")
        top = {id(one) for layer in layers[len(layers) - self.last :] for one in layer.parameters()}
        everything = dict(model.named_parameters())
        found = {name for name, one in everything.items() if id(one) in top}
        if self.last:
            found |= {name for name, one in everything.items() if id(one) in _last_norms(model, layers)}
        for pattern in self.names:
            fitting = {name for name in everything if fnmatchcase(name, pattern)}
            if not fitting:
                raise ModelError(f"adapter.names: no parameter is called {pattern!r}; the first is {min(everything)}")
            found |= fitting
        return found


def _last_norms(model: Any, layers: list[Any]) -> set[int]:
    """Identities of the parameters of norms that stand behind the layers."""
    modules = list(model.modules())
    end = max(modules.index(one) for one in layers[-1].modules())
    norms = [one for one in modules[end + 1 :] if type(one).__name__.lower().endswith("norm")]
    return {id(weight) for norm in norms for weight in norm.parameters()}
