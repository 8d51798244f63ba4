"""Several adapters of one base in memory at once: the base is there once, and what each adapter adds is put in its place when its turn comes."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tunesmith.base import ModelError
from tunesmith.kernels.lora_linear import LoRALinear
from tunesmith.models.load import Loaded

from .adapters.lora import LoRA
from .merging.base import Correction
from .merging.peft_file import rank_of, read_corrections

BASE = "base"
"""The name of the model without any adapter."""


class Several:
    """A base with low-rank adapters by name, of any ranks; each is a model of its own to whoever answers or measures with it.

    Args:
        loaded: the base; it is changed in place and should be used through `models` from then on.
        folders: adapters in peft's format.

    Raises:
        ModelError: an adapter is more than low-rank corrections, or is called `base`.
    """

    def __init__(self, loaded: Loaded, folders: Mapping[str, Path]) -> None:
        ranks = {name: rank_of(folder) for name, folder in folders.items()}
        for name, rank in ranks.items():
            if rank is None or name == BASE:
                reason = "has the base's name" if name == BASE else "adds more than low-rank corrections"
                raise ModelError(f"adapter {name}: {reason}, and cannot share the base's memory; serve it alone")
        self.kept = {name: read_corrections(folder) for name, folder in folders.items()}
        widest = max(rank for rank in ranks.values() if rank is not None)
        paths = {path for corrections in self.kept.values() for path in corrections}
        targets = tuple(sorted({path.rsplit(".", 1)[-1] for path in paths}))
        adapter = LoRA(rank=widest, alpha=widest, targets=targets)
        adapter.attach(loaded, 0)
        loaded.model.requires_grad_(False)
        self.layers: dict[str, LoRALinear] = adapter.layers(loaded.model)
        if odd := sorted(paths - set(self.layers)):
            raise ModelError(f"adapter: corrects {odd[0]}, which {loaded.name} does not have")
        self.active: str | None = None
        self.loaded = loaded
        self._decoder = loaded.decoder()
        self.models = {name: replace(loaded, name=name, turn=partial(self.use, name)) for name in (BASE, *folders)}

    @torch.no_grad()
    def use(self, name: str) -> None:
        """Let the model compute with an adapter, or as its base; it costs a copy of what the adapter holds."""
        if name == self.active:
            return
        mine = self.kept.get(name, {})
        for path, layer in self.layers.items():
            layer.lora_A.zero_()
            layer.lora_B.zero_()
            if path in mine:
                _place(layer, mine[path])
        if self._decoder is not None:
            self._decoder.refresh()
        self.active = name


def _place(layer: LoRALinear, correction: Correction) -> None:
    """In the first of the columns that there are; what is left is zero and adds nothing."""
    layer.lora_A[: correction.rank] = correction.down_RI
    layer.lora_B[:, : correction.rank] = correction.up_OR
