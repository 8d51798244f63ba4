"""BitFit (Ben Zaken et al., 2022, arXiv:2106.10199): only biases learn."""

from typing import Any, Literal

from .weights import Weights


class BitFit(Weights):
    """The fewest weights that can still change an answer. Most decoders of today have few biases or none, so norms learn with them."""

    kind: Literal["bitfit"] = "bitfit"
    norms: bool = True
    """Whether the weights of norms learn too; in models without biases they are all there is. Our choice."""

    def chosen(self, model: Any, seed: int) -> set[str]:
        """Biases, and what norms multiply by."""
        norms = {
            f"{path}.{name}"
            for path, module in model.named_modules()
            if type(module).__name__.lower().endswith("norm")
            for name, _ in module.named_parameters(recurse=False)
        }
        every = {name for name, _ in model.named_parameters()}
        return {name for name in every if name.endswith("bias")} | (norms & every if self.norms else set())
