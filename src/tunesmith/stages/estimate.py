"""What a training would take, in bytes and seconds, before anything is spent: from the configuration and the rows' lengths alone."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.kernels.dora_linear import DoRALinear
from tunesmith.kernels.memory import PRODUCTS
from tunesmith.kernels.nf4_linear import BLOCK, NF4Linear
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.objectives import Objective
from tunesmith.methods.optimizers import Optimizer
from tunesmith.models.generate import BATCH
from tunesmith.models.heads import attach_head
from tunesmith.models.load import DTYPES, Loaded
from tunesmith.models.load import parameters as count
from tunesmith.models.skeleton import skeleton
from tunesmith.training.batches import Dataset
from tunesmith.training.others import imagined_answers
from tunesmith.training.rollouts import Sampled

from .dry_run import Footprint, rehearse, storages
from .machine import Speed

COMPILED = PRODUCTS << 19
"""Bytes of matrix products that oneDNN keeps compiled, half a megabyte each, once a run has met as many lengths as the cache takes."""
SLACK = 48 << 20
"""Bytes that loading and the first products leave."""
LOOSE, LOOSE_FLOAT32 = 0.3, 0.54
"""Memory that the allocator touches beyond what is in use, as a share of what a pass keeps: small objects of each layer stay, and take
their room from holes that the next layer's temporary tensors would have fitted."""
SLOWDOWN = 1.6
"""How much longer the loop takes than its operations at the probed speeds, on an idle machine: its products are smaller."""
OPTIMIZER_TRAFFIC = 9
"""How often AdamW and clipping touch the bytes of what learns: the weight, its gradient and two moments, read and written."""
SAMPLED_STEPS = 16
"""Steps whose rows are packed to learn how much prefixes share."""
HEAVIEST, EPOCHS = 8, 20
"""Steps, of at most so many epochs, that are searched for the largest micro-batch."""


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a training."""

    weights: int
    """Bytes of weights that do not learn."""
    learnt: int
    """Bytes of weights that learn and of their gradients."""
    state: int
    """Bytes that the optimizer remembers, or works with."""
    activations: int
    """Bytes kept from the forward pass for the backward pass, and temporary ones, when most are alive."""
    logits: int
    """Bytes of tensors as wide as the vocabulary."""
    overhead: int
    """Bytes of compiled products and of memory that the allocator cannot reuse."""
    resident: int
    """Bytes that the process holds already: Python, torch, the tokenizer, the rows."""
    checkpointing: bool
    """Whether layers are computed again in the backward pass."""
    parameters: int
    """Count of parameters of the model, what an adapter adds not included."""
    learning: int
    """Count of parameters that learn."""
    rows: int
    steps: int
    tokens: int
    """Tokens of all rows over all epochs, as given."""
    distinct_tokens: int
    """Tokens that are computed: a prefix common to rows of a micro-batch counts once."""
    seconds: float
    available: int
    """Bytes that are free."""

    @property
    def peak_bytes(self) -> int:
        """Most memory in use at one time."""
        parts = (self.weights, self.learnt, self.state, self.activations, self.logits, self.overhead, self.resident)
        return sum(parts)

    @property
    def needed(self) -> int:
        """Bytes that have to be free."""
        return self.peak_bytes - self.resident

    @property
    def fits(self) -> bool:
        """Whether it can run here."""
        return self.needed <= self.available


def gigabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.1f} GB"


@dataclass(frozen=True)
class Passes:
    """What an optimizer does in one step, seen on a problem of two parameters."""

    with_gradient: int
    without: int

    @classmethod
    def of(cls, optimizer: Optimizer) -> "Passes":
        """Count the closure calls of a real step."""
        parameters = {"layer.weight": nn.Parameter(torch.ones(2, 2)), "norm.weight": nn.Parameter(torch.ones(2))}
        calls: list[bool] = []

        def closure() -> Tensor:
            calls.append(torch.is_grad_enabled())
            loss = sum((parameter.square().sum() for parameter in parameters.values()), torch.zeros(()))
            if calls[-1]:
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        random = torch.get_rng_state()
        learnt, frozen = ({name: parameters[name]} for name in parameters)
        optimizer.model_copy(update={"rates": {}}).over(learnt, frozen).step(closure)  # type: ignore[arg-type]
        torch.set_rng_state(random)
        return cls(sum(calls), len(calls) - sum(calls))


@dataclass(frozen=True)
class Workload:
    """The rows and how they are cut into steps, looked at on a few steps."""

    data: Dataset

    @cached_property
    def sampled(self) -> list[Batch]:
        """Micro-batches of steps spread over the first epoch."""
        steps = self.data.steps_per_epoch
        chosen = np.linspace(0, steps - 1, min(steps, SAMPLED_STEPS)).astype(int).tolist()
        return [batch for step in chosen for batch in self.data.step(step)]

    @cached_property
    def epochs(self) -> list[np.ndarray]:
        """Tokens of each row of the epochs that are looked at, in their order."""
        lengths = np.array([sum(map(len, row.sequences)) for row in self.data.rows])
        count = min(-(-self.data.steps // self.data.steps_per_epoch), EPOCHS)
        return [lengths[self.data.order(epoch)] for epoch in range(count)]

    @cached_property
    def largest(self) -> Batch:
        """The micro-batch with most distinct tokens, among those of the steps with most tokens: it sets the peak of memory."""
        starts, repeats = np.arange(0, self.data.size, self.data.batch), self.data.repeats
        tokens = np.concatenate([np.add.reduceat(epoch, starts) for epoch in self.epochs])
        heaviest = np.argsort(tokens[: self.data.steps // repeats])[-HEAVIEST:].tolist()
        batches = (batch for step in heaviest for batch in self.data.step(step * repeats))
        return max(batches, key=lambda batch: batch.distinct)

    @property
    def shared(self) -> float:
        """Distinct tokens for each token given."""
        return sum(batch.distinct for batch in self.sampled) / sum(batch.tokens for batch in self.sampled)

    @property
    def tokens(self) -> int:
        """Tokens of all steps, as given."""
        once = sum(int(epoch.sum()) for epoch in self.epochs) / len(self.epochs)
        return round(once * self.data.repeats * self.data.steps / self.data.steps_per_epoch)

    def until(self, most_tokens: int | None) -> "Workload":
        """The part that is done when so many distinct tokens were learnt from; None ends nothing early."""
        if most_tokens is None:
            return self
        whole = Workload(replace(self.data, micro_batch=self.data.batch, share=True))  # they are counted so anyway
        steps = -(-most_tokens * self.data.steps // max(1, round(self.tokens * whole.shared)))
        ends_early = steps < self.data.steps
        return Workload(replace(self.data, epochs=steps / self.data.steps_per_epoch)) if ends_early else self

    @property
    def micro_batches(self) -> int:
        """Of all steps."""
        return self.data.steps * -(-min(self.data.batch, self.data.size) // self.data.micro_batch)


def estimate(
    config: Any, adapter: Adapter, optimizer: Optimizer, objective: Objective, data: Dataset, *, precision: str, speed: Speed,
    available: int, resident: int, checkpointing: bool = False, beside: int = 0, most_tokens: int | None = None,
) -> Estimate:  # fmt: skip
    """Estimate a training by rehearsing its largest micro-batch without numbers.

    Args:
        config: transformers' configuration of the model.
        data: the training rows in their batches.
        precision: `fp32` or `bf16`.
        speed: of this machine, see `measure_speed`.
        available: free bytes, see `available_memory`.
        resident: bytes that the process holds already, see `resident_memory`.
        checkpointing: whether layers are computed again in the backward pass.
        beside: bytes that other models hold meanwhile, such as one that pays for answers.
        most_tokens: training ends when so many distinct ones were learnt from.

    Raises:
        ModelError: the model cannot be built, or has nothing that the adapter could teach.
    """
    work = Workload(replace(data, rows=imagined_answers(objective, data.rows))).until(most_tokens)
    data = work.data
    passes, loaded = Passes.of(optimizer), Loaded("plan", Path(), skeleton(config, precision), None, precision)
    loaded.checkpointing = checkpointing
    parameters = count(loaded.model)
    if optimizer.moves_frozen:
        loaded.model.float()
    adapter.attach(loaded, data.seed)
    if objective.head:
        attach_head(loaded)
    learnt = trainable(loaded.model)
    optimizer.groups(learnt)  # refuses rates of what does not learn
    own = sum(parameter.nbytes for parameter in learnt.values())
    several = data.micro_batch < min(data.batch, data.size)
    pass_ = rehearse(loaded, objective, work.largest, gradients=passes.with_gradient > 0, accumulate=several)
    if optimizer.moves_frozen:  # a copy of the base lies where the pass keeps its tensors later
        pass_ = replace(pass_, kept=max(pass_.kept, 4 * parameters))
    return Estimate(
        **_memory(pass_, own, own if passes.with_gradient else 0, LOOSE_FLOAT32 if precision == "fp32" else LOOSE),
        weights=sum(storage.nbytes() for storage in storages(loaded))
        - own
        + beside
        + (_plain_copy(loaded) + own * _holds_start(objective, adapter) if isinstance(data, Sampled) else 0),
        state=optimizer.state_bytes(learnt) + optimizer.scratch_bytes(learnt),
        parameters=parameters,
        learning=sum(parameter.numel() for parameter in learnt.values()),
        rows=len(data.rows),
        steps=data.steps,
        tokens=work.tokens,
        distinct_tokens=round(work.tokens * work.shared),
        seconds=_seconds(work, pass_, passes, speed, own) * (1 + measuring(objective, data) / 3)
        + (_sampling(data, parameters, speed, precision) if isinstance(data, Sampled) else 0.0),
        available=available,
        resident=resident,
        checkpointing=checkpointing,
    )


def measuring(objective: Objective, data: Dataset) -> float:
    """Forward passes, for each step's own, that measure log-probabilities: once for all epochs, or for the answers of each rollout."""
    if not isinstance(data, Sampled):
        return (objective.references + len(objective.others) + (objective.teaching is not None)) / data.epochs
    return (objective.references + (data.repeats > 1 or objective.head)) / data.repeats


def _holds_start(objective: Objective, adapter: Adapter) -> bool:
    """Whether what learns lies there twice: as it is, and as it was when training began, which measures answers that are yet to be sampled."""
    return objective.references and adapter.neutral  # without the others a model is its base again


def _plain_copy(loaded: Loaded) -> int:
    """Bytes of the plain numbers that fused sampling makes of layers that it cannot read as they are, with factors or in four bits whose blocks end within
    rows, for as long as it samples; the backward's pages are not free then."""
    if loaded.decoder() is None:
        return 0
    turned = [layer.base for layer in loaded.model.modules() if isinstance(layer, DoRALinear)]
    packed = [layer for layer in loaded.model.modules() if isinstance(layer, NF4Linear) and layer.in_features % BLOCK]
    copied = {id(layer): layer.in_features * layer.out_features for layer in (*turned, *packed)}
    return sum(copied.values()) * DTYPES[loaded.precision].itemsize


def _sampling(data: Sampled, parameters: int, speed: Speed, precision: str) -> float:
    """Seconds in which answers of full length are sampled: a token of all answers under way reads every weight once."""
    answers, bf16 = data.batch * data.spec.samples, precision != "fp32"
    together = min(answers, BATCH)
    token = speed.seconds(2 * parameters * together, parameters * (2 if bf16 else 4), bf16)
    return SLOWDOWN * token * data.spec.max_tokens * -(-answers // BATCH) * data.steps / data.repeats


def _memory(found: Footprint, own: int, gradients: int, share: float) -> dict[str, int]:
    """Parts of the peak: in the forward and backward pass, or when all gradients are there and the optimizer steps; the arena keeps its pages."""
    elsewhere = found.bytes - found.kept
    most = found if elsewhere >= gradients else replace(found, activations=0, logits=0, gradients=gradients)
    loose = int(share * (found.kept or most.activations + most.logits))
    return {
        "learnt": own + most.gradients,
        "activations": found.kept + most.activations,
        "logits": most.logits,
        "overhead": COMPILED + SLACK + loose,
    }


def _seconds(work: Workload, found: Footprint, passes: Passes, speed: Speed, own: int) -> float:
    """Operations of the rehearsed micro-batch, scaled to all tokens, and the optimizer reading and writing what learns."""
    moving = sum(times * (speed.seconds(*each) - speed.operation) for each, times in found.work.items())
    computed = (
        moving * work.tokens * work.shared / work.largest.distinct
        + speed.operation * found.work.total() * work.micro_batches
    )
    if passes.with_gradient:
        computed *= passes.with_gradient + passes.without / 3  # a backward pass is two thirds of the work
        computed += work.data.steps * OPTIMIZER_TRAFFIC * own / speed.bandwidth
    else:
        computed = computed * passes.without + work.data.steps * (passes.without + 1) * 2 * own / speed.bandwidth
    return SLOWDOWN * computed
