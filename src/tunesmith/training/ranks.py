"""Several processes that train one model: each takes its share of a step's passes, and they add up their gradients (PyTorch's distributed engine).

`torchrun --nproc-per-node 2 --no-python -- tunesmith run recipe.yaml` starts them, on one machine or several that see one folder. The first process does all
else; what is said between them is JSON and plain numbers.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as torch_distributed
from torch import Tensor

from tunesmith.base import MachineError
from tunesmith.base.launched import several

PATIENCE = timedelta(days=7)
"""How long one waits for the others: a process that is lost is noticed at once, by its connection."""
BUCKET = 1 << 23
"""Numbers that are added up at a time: few messages, and little memory besides."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is; one alone says nothing to anybody."""

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> Self:
        """With the processes that `torchrun` started beside this one, if it did.

        Raises:
            MachineError: they do not find each other.
        """
        if not several():
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _others():
            torch_distributed.init_process_group(backend, timeout=PATIENCE)
        return cls.present()

    @classmethod
    def present(cls) -> Self:
        """Those that have joined."""
        if not (torch_distributed.is_available() and torch_distributed.is_initialized()):
            return cls()
        return cls(torch_distributed.get_rank(), torch_distributed.get_world_size())

    def leave(self) -> None:
        """Part from the others; a process that ends without may be ended by its own threads."""
        if self.count > 1:
            torch_distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that does all else."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[tuple[int, Item]]:
        """This process's part, with the place of each in the whole."""
        return list(enumerate(items))[self.rank :: self.count]

    def told(self, value: Any = None) -> Any:
        """What the first process says, a JSON value, in all of them."""
        return self._said(value, 0) if self.count > 1 else value

    def gathered(self, value: Any) -> list[Any]:
        """What each process says, a JSON value, in all of them, in their order."""
        return [self._said(value, rank) for rank in range(self.count)] if self.count > 1 else [value]

    def add_up(self, parameters: Iterable[Tensor]) -> None:
        """Make the gradients of all processes' parts the sum of them; one that no process has stays away.

        For two processes, where each takes one pass of a step, the sum has the bits of one that did both, one after the other.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        present = _sum(torch.tensor([one.grad is not None for one in parameters], dtype=torch.int32))
        for one in (one for one, known in zip(parameters, present.tolist(), strict=True) if known):
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        for bucket in _buckets([one.grad for one in parameters if one.grad is not None]):
            whole = _sum(torch.cat([grad.flatten() for grad in bucket]))
            for grad, part in zip(bucket, torch.split(whole, [grad.numel() for grad in bucket]), strict=True):
                grad.copy_(part.view_as(grad))

    def _said(self, value: Any, rank: int) -> Any:
        """A JSON value from one process to all."""
        text = json.dumps(value).encode() if self.rank == rank else b""
        with _others():
            length = torch.tensor(len(text))
            torch_distributed.broadcast(length, rank)
            letters = torch.frombuffer(bytearray(text.ljust(int(length))), dtype=torch.uint8)
            torch_distributed.broadcast(letters, rank)
        return json.loads(bytes(letters.tolist()))


ALONE = Ranks()


def digest_of(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of their bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _sum(tensor: Tensor) -> Tensor:
    """Of all processes, in place."""
    with _others():
        torch_distributed.all_reduce(tensor)
    return tensor


def _buckets(grads: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one kind, so many that they are worth a message."""
    bucket: list[Tensor] = []
    for grad in grads:
        kind = (grad.dtype, grad.device)
        if bucket and (kind != (bucket[0].dtype, bucket[0].device) or sum(map(torch.numel, bucket)) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(grad)
    if bucket:
        yield bucket


@contextmanager
def _others() -> Iterator[None]:
    """Within this block an error of the engine means that a process is gone."""
    try:
        yield
    except RuntimeError as error:
        said = re.sub(r"^\[.*?\] *", "", str(error).splitlines()[0]).split(". ")[0]  # where in the engine; what; advice
        raise MachineError(
            f"a process of this training was lost ({said}); run again to go on from the last checkpoint"
        ) from None
