"""A training step without numbers: the real code runs on torch's `meta` device, where tensors have shapes but no memory.

What autograd keeps, what an operation multiplies and what it reads and writes are thus counted from the very code that will train,
for any architecture, adapter and objective, in a second and without the weights.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, mm_flop

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.kernels.arena import Rehearsal, rehearsing
from tunesmith.kernels.recompute import around
from tunesmith.methods.adapters import trainable
from tunesmith.methods.objectives import Objective
from tunesmith.models.forward import needs_autocast
from tunesmith.models.load import Loaded

INT8_RATE = 2
"""How much faster processors multiply int8 than bf16; such products are counted as bf16 ones of that fraction."""
Work = tuple[int, int, bool]
"""(floating point operations, bytes read and written, whether the product is in bf16) of one operation."""


@dataclass(frozen=True)
class Footprint:
    """What one forward and backward pass over some micro-batches takes."""

    kept: int
    """Bytes of the arena, where the forward pass keeps what the backward pass reads; none where transformers' own layers compute."""
    activations: int
    """Bytes of tensors elsewhere, other than weights, at the moment when there are most, without `logits` and `gradients`."""
    logits: int
    """Bytes, at that moment, of tensors as wide as the vocabulary."""
    gradients: int
    """Bytes, at that moment, of gradients of what learns."""
    work: Counter[Work]
    """How often each amount of work was done."""

    @property
    def bytes(self) -> int:
        """All together; the arena's pages stay, whenever the other tensors are most."""
        return self.kept + self.activations + self.logits + self.gradients

    @property
    def flops(self) -> int:
        """Floating point operations in matrix products; one multiplication and addition are two."""
        return sum(work[0] * times for work, times in self.work.items())


def storages(loaded: Loaded) -> list[torch.UntypedStorage]:
    """Everything a model keeps, each piece of memory once: parameters, buffers, and the joint weights of its fused form."""
    decoder = loaded.decoder()
    held = decoder.held() if decoder is not None else []
    every = (each.untyped_storage() for each in (*loaded.model.parameters(), *loaded.model.buffers(), *held))
    return list({found._cdata: found for found in every}.values())


def rehearse(
    loaded: Loaded, objective: Objective, batch: Batch, *, gradients: bool = True, accumulate: bool = False
) -> Footprint:
    """Run a micro-batch on a skeleton and count.

    Args:
        loaded: a skeleton with its adapter attached; gradients that it has are dropped first.
        objective: what is minimised.
        batch: the micro-batch.
        gradients: whether there is a backward pass; zeroth-order methods have none.
        accumulate: whether gradients of an earlier micro-batch are there already.

    Raises:
        ModelError: the step needs numbers to know its shapes.
    """
    learnt = trainable(loaded.model).values()
    for parameter in learnt:
        parameter.grad = torch.zeros_like(parameter) if accumulate and gradients else None
    before = [parameter.grad for parameter in learnt if parameter.grad is not None]
    room = Rehearsal()
    tally = Tally(loaded, [*before, room.room])
    casts = needs_autocast(loaded) and loaded.decoder() is None  # the fused form casts by itself
    # autocast knows no meta device: Bf16Products does what it would, so the forward pass itself must not ask for it
    quiet = replace(loaded, precision="fp32", fuse=False) if casts else loaded
    try:
        with tally, torch.set_grad_enabled(gradients), rehearsing(room):
            again = around.set(partial(Bf16Products, casts))
            with Bf16Products(casts):
                total = objective(quiet, batch).total
            around.reset(again)
            if gradients:
                total.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # an operation that has no form without numbers, such as the routing of some experts
        kind, reason = loaded.model.config.model_type, str(error).splitlines()[0]
        raise ModelError(
            f"model of type {kind!r}: its step cannot be planned ({reason}); start the run to find out"
        ) from error
    made = [parameter.grad for parameter in learnt if parameter.grad is not None] if not before else []
    vocabulary = loaded.model.config.get_text_config().vocab_size
    found = tally.at_peak(made, sum(gradient.nbytes for gradient in before), vocabulary)
    return replace(found, kept=room.most)


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base class untyped
    """Sees every operation: which storages it makes, when they die, and how much work it is."""

    def __init__(self, loaded: Loaded, others: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work: Counter[Work] = Counter()
        self.changes: list[tuple[int, int]] = []
        self.widths: list[int] = []
        self.alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self.kept = [*storages(loaded), *(tensor.untyped_storage() for tensor in others)]
        self.known = {storage._cdata for storage in self.kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # a number nobody knows yet; code that asks for one only reports it
        out = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor) and tensor.is_meta]
        for tensor in made:
            self._note(tensor)
        if made and not _is_view(func):
            self._count(func, args, kwargs or {}, out, made)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in self.alive:
            return
        number, size = len(self.widths), storage.nbytes()
        self.widths.append(tensor.shape[-1] if tensor.ndim else 1)
        self.changes.append((number, size))
        self.alive[key] = (number, weakref.ref(storage, partial(self._free, key, number, size)))

    def _free(self, key: int, number: int, size: int, _: Any) -> None:
        self.alive.pop(key, None)
        self.changes.append((number, -size))

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, made: list[Tensor]) -> None:
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        if func is torch.ops.aten._int_mm.default:
            flops = mm_flop(args[0].shape, args[1].shape) // INT8_RATE
        read = sum(
            tensor.nbytes for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor) and tensor.is_meta
        )
        self.work[
            flops, read + sum(tensor.nbytes for tensor in made), made[0].dtype in (torch.bfloat16, torch.int32)
        ] += 1

    def at_peak(self, gradients: Sequence[Tensor], before: int, vocabulary: int) -> Footprint:
        """What was alive when most was; `gradients` were made meanwhile, `before` bytes of them were there from the start."""
        ours = {self.alive[tensor.untyped_storage()._cdata][0] for tensor in gradients}
        now = most = where = 0
        for place, (_, change) in enumerate(self.changes):
            now += change
            if now > most:
                most, where = now, place
        live: Counter[int] = Counter()
        for number, change in self.changes[: where + 1]:
            live[number] += change
        kept = sum(size for number, size in live.items() if number in ours)
        logits = sum(size for number, size in live.items() if number not in ours and self.widths[number] == vocabulary)
        return Footprint(0, most - kept - logits, logits, before + kept, self.work)


def _is_view(func: Any) -> bool:
    """Whether an operation only looks at its input in another way."""
    return any(found.alias_info is not None and not found.alias_info.is_write for found in func._schema.returns)


class Bf16Products(TorchFunctionMode):
    """Matrix products in bf16, the cast of a weight kept for the whole pass: what torch's autocast does on a real device."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self.casts: dict[int, Tensor] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.enabled and func in PRODUCTS:
            args = tuple(self._cast(value) if isinstance(value, Tensor) else value for value in args)
        return func(*args, **(kwargs or {}))

    def _cast(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32 or not tensor.is_meta:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return tensor.to(torch.bfloat16)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = tensor.to(torch.bfloat16)
        return self.casts[id(tensor)]


PRODUCTS = {
    nn.functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm,
}  # fmt: skip
