"""What a recipe and its alternatives would need of this machine, and the refusal of what cannot fit."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table

from tunesmith.base import ConfigError, DataError, Events, MachineError, ModelError, Output
from tunesmith.base.spec import overridden, validate
from tunesmith.data.example import Row
from tunesmith.data.prepared import load_split
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.load import load_config, locate, resolve_precision, served
from tunesmith.models.quantize import KINDS
from tunesmith.models.skeleton import skeleton

from .estimate import Estimate, estimate, gigabytes
from .initialise import Initialise
from .machine import available_memory, measure_speed, resident_memory
from .prepare import prepare
from .prune import Prune
from .recipe import Recipe

ALTERNATIVES = ("lora", "full")
"""Adapters that a recipe's own is compared with, the least hungry first."""
ROOM = 0.95
"""Share of the free memory that one of the settings which are named instead may need, if any does: free memory moves."""


@dataclass(frozen=True)
class Plan:
    """One way to train, and what it takes."""

    method: str
    """Precision, adapter, objective and optimizer."""
    settings: tuple[str, ...]
    """Overrides that turn the recipe into this; none for the recipe itself."""
    estimate: Estimate


def plan(recipe: Recipe, rows: Sequence[Row] | None = None) -> list[Plan]:
    """The recipe's own way first, then the alternatives, and last the tuning again after pruning, if it asks for that.

    Args:
        recipe: what a person decided.
        rows: training rows, if they are prepared already; else they are prepared in a temporary folder.

    Raises:
        ConfigError: a rate is set for something that does not learn.
        DataError: the rows cannot be used as they are.
        ModelError: the model cannot be found or built.
    """
    rows = prepared(recipe) if rows is None else rows
    return [*plans(recipe, rows), *islice(recovery_plans(recipe, rows), 1)]


def plans(recipe: Recipe, rows: Sequence[Row], available: int | None = None) -> Iterator[Plan]:
    """As `plan`, each when it is asked for, for a training that may take so many bytes; None is all that is free."""
    config = load_config(locate(recipe.model))
    text = config.get_text_config()
    skeleton(config, resolve_precision(recipe.precision))  # loads the model's code, which the process then holds
    speed = measure_speed(text.hidden_size, text.intermediate_size)
    free = available_memory() if available is None else available
    machine = {"speed": speed, "available": free, "resident": resident_memory()}
    yield _plan(recipe, (), rows, config, machine)
    for settings in alternatives(recipe):
        with suppress(
            ModelError, ConfigError
        ):  # an adapter that this architecture cannot have, or rates do not fit, is no alternative
            yield _plan(recipe, settings, rows, config, machine)


def recovery_plans(recipe: Recipe, rows: Sequence[Row]) -> Iterator[Plan]:
    """As `plans`, of the training that follows pruning; it is counted as if nothing had been pruned. None without one."""
    prune = recipe.prune
    if prune.recovery is None or prune.method is None:
        return
    again = {"finetune": prune.recovery, "initialise": Initialise(adapter=prune.adapter), "prune": Prune()}
    for each in plans(recipe.model_copy(update={**again, "precision": served(recipe.precision)}), rows):
        settings = tuple(_of_recovery(setting) for setting in each.settings)
        if prune.method.smaller or not any(setting.startswith("prune.adapter") for setting in settings):
            yield replace(each, method=f"after pruning: {each.method}", settings=settings)


def _of_recovery(setting: str) -> str:
    """An override of a training as one of the training that follows pruning."""
    return setting.replace("finetune.", "prune.recovery.").replace("initialise.adapter", "prune.adapter")


def _plan(recipe: Recipe, settings: tuple[str, ...], rows: Sequence[Row], config: Any, machine: dict[str, Any]) -> Plan:
    tree = recipe.model_dump(mode="json")
    overridden(tree, settings, Recipe)
    changed = validate(Recipe, tree, "plan")
    tune, precision, adapter = changed.finetune, resolve_precision(changed.precision), changed.initialise.adapter
    rows = [rows[place] for place in tune.places(rows, changed.seed)]
    tune.objective.check(rows)
    data, wanted = tune.dataset(tune.objective.arranged(rows), changed.seed), tune.activation_checkpointing
    beside = sum(each.grader.memory for each in tune.rollouts.rewards) if tune.rollouts is not None else 0
    for checkpointing in (False, True) if wanted == "auto" else (wanted,):
        found = estimate(
            config, adapter, tune.optimizer, tune.objective, data, precision=precision, checkpointing=checkpointing,
            beside=beside, most_tokens=tune.most_tokens, **machine,
        )  # fmt: skip
        if found.fits:
            break
    return Plan(" ".join((precision, adapter.kind, tune.objective.kind, tune.optimizer.kind)), settings, found)


def alternatives(recipe: Recipe) -> list[tuple[str, ...]]:
    """Overrides worth a look: smaller micro-batches, other adapters, and the two least hungry ones together."""
    tune = recipe.finetune
    adapter, optimizer = recipe.initialise.adapter, tune.optimizer
    again = () if tune.activation_checkpointing is True else ("finetune.activation_checkpointing=true",)
    micro = tune.micro_batch or tune.batch
    sizes = set[int]() if tune.objective.whole else {micro // 2, 1} - {0, micro}
    smaller = [f"finetune.micro_batch={size}" for size in sorted(sizes, reverse=True)]
    moments = isinstance(optimizer, AdamW) and not optimizer.offload and not adapter.adds_weights
    elsewhere = ("finetune.optimizer.offload=true",) if moments else ()
    beside = recipe.precision in KINDS or optimizer.moves_frozen
    kinds = [kind for kind in ALTERNATIVES if not beside or Adapter.member(kind).adds_weights]
    others = [f"initialise.adapter.kind={kind}" for kind in kinds if kind != adapter.kind]
    both = [(each, smaller[-1]) for each in others if smaller and each.endswith(f"={ALTERNATIVES[0]}")]
    return [*((each,) for each in (*again, *elsewhere, *smaller, *others)), *both]


def prepared(recipe: Recipe) -> list[Row]:
    """The training rows, prepared as the run will prepare them, nothing kept.

    Raises:
        DataError: they cannot be used as they are.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-plan-") as name:
        folder = Path(name)
        out = Output(folder, Events(folder / "events.jsonl"))
        try:
            prepare(recipe.prepare, out=out, tokenizer_name=recipe.model, seed=recipe.seed)
        except DataError as error:  # may name the ledger, which goes with the folder
            listed = f"all are listed in {folder / 'ledger.jsonl'}"
            raise DataError(str(error).replace(listed, "run `tunesmith prepare` to have all listed")) from None
        return load_split(folder, "train")


def check_memory(found: Iterable[Plan]) -> Plan:
    """The first plan, if it fits; the others are looked at only if it does not.

    Raises:
        MachineError: it does not fit; names the settings that would, or says that none does.
    """
    each = iter(found)
    first = next(each)
    own = first.estimate
    if own.fits:
        return first
    others = list(each)
    fitting = [other for other in others if other.estimate.fits]
    roomy = [other for other in fitting[1:] if other.estimate.needed <= ROOM * other.estimate.available]
    named = [" with ".join(other.settings) for other in (*fitting[:1], *(roomy or fitting[1:])[:1])]
    least = min(other.needed for other in (own, *(each.estimate for each in others)))
    mend = (
        f"set {', or '.join(named)}"
        if named
        else f"its alternatives need at least {gigabytes(least)}, so take a smaller model"
    )
    raise MachineError(
        f"training needs about {gigabytes(own.needed)} more, this machine has {gigabytes(own.available)} free; {mend}; see `tunesmith plan`"
    )


def table(found: Sequence[Plan]) -> Table:
    """Plans for the terminal: memory, time and whether each fits."""
    own = found[0].estimate
    title = (
        f"{own.parameters:,} parameters · {own.rows:,} rows · {own.steps:,} steps · {own.tokens:,} tokens, "
        f"{own.distinct_tokens:,} of them computed · {gigabytes(own.available)} free"
    )
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("method", "change"):
        drawn.add_column(heading)
    for heading in ("learns", "weights", "optimizer", "activations", "peak memory", "time", "fits"):
        drawn.add_column(heading, justify="right")
    for each in found:
        seen = each.estimate
        drawn.add_row(
            each.method, " ".join(each.settings) or _given(seen), f"{seen.learning:,}", gigabytes(seen.weights + seen.learnt),
            gigabytes(seen.state), gigabytes(seen.activations + seen.logits), gigabytes(seen.peak_bytes), duration(seen.seconds),
            "yes" if seen.fits else "no",
        )  # fmt: skip
    return drawn


def _given(found: Estimate) -> str:
    """What stands for the recipe itself, with what `auto` came to where memory would not suffice otherwise."""
    return "as given" if not found.checkpointing else "as given, layers computed again"


def duration(seconds: float) -> str:
    """A time for people, to two figures: it is an estimate."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 99.5 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:.0f} s"
