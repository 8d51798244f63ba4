"""Prepare: from a person's files to examples and tokens that a model can learn from, every row accounted for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunesmith.base import ConfigError, DataError, Output, Spec, Stage
from tunesmith.base.files import write_json
from tunesmith.data.batch import save_rows
from tunesmith.data.cleaners import Cleaner
from tunesmith.data.cleaners.exact_duplicates import ExactDuplicates
from tunesmith.data.cleaners.leakage import Leakage
from tunesmith.data.example import Row
from tunesmith.data.formats import names
from tunesmith.data.intake import Intake, Item, check_shapes, take_in
from tunesmith.data.ledger import Ledger
from tunesmith.data.prepared import SPLITS
from tunesmith.data.render import Renderer
from tunesmith.data.sources import find_files
from tunesmith.data.split import split
from tunesmith.data.tables import class_table, length_table
from tunesmith.models.load import load_tokenizer

Items = dict[str, list[Item]]
CHUNK = 1000
"""Rows whose texts are encoded together."""


class Prepare(Spec):
    """Which rows are learnt from, which are held out, and what is done about bad ones."""

    source: str | tuple[str, ...]
    """Data to learn from: a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt, .md; .gz too), a glob, a folder,
    or a list of these."""
    test: str | None = None
    """Data to measure the finished model on; null splits it off the source by test_fraction."""
    test_fraction: float = Field(default=0.1, ge=0)
    """Size of the test set where `test` is null: below 1 a fraction of the rows, else a count."""
    validation: str | None = None
    """Data to watch training by and to choose settings on; null splits it off the source by validation_fraction."""
    validation_fraction: float = Field(default=0.1, ge=0)
    """Size of the validation set where `validation` is null: below 1 a fraction of the rows, else a count."""
    rows: int | None = Field(default=None, ge=1)
    """Take only the first so many rows of the source; null takes all."""
    test_rows: int | None = Field(default=None, ge=1)
    """Take only the first so many rows of `test`; null takes all."""
    validation_rows: int | None = Field(default=None, ge=1)
    """Take only the first so many rows of `validation`; null takes all."""
    format: str = "auto"
    """How rows are written: auto, messages, sharegpt, alpaca, prompt_completion, preference, kto or text."""
    stratify: str | None = None
    """Field whose values keep their proportions in what is split off; `answer` is the reference answer."""
    group: str | None = None
    """Field of which each value stays on one side as a whole, for example a user or a document."""
    max_tokens: int = Field(default=1024, ge=8)
    """Tokens of a row, prompt and answer together, beyond which it is cut off on the right."""
    supervise: Literal["answers", "all"] = "answers"
    """What is learnt: what the assistant says, or the prompt too."""
    cleaners: tuple[Cleaner, ...] = (ExactDuplicates(), Leakage())
    """What looks for rows that should not be there. near_duplicates is off unless named: augmented rows are alike
    on purpose."""
    refuse_above: float = Field(default=0.2, ge=0, le=1)
    """Share of rows, quarantined or truncated, above which nothing is prepared and the reasons are shown instead."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.format not in ("auto", *names()):
            raise ValueError(f"format {self.format!r} does not exist; there are auto, {', '.join(names())}")
        for name in ("test", "validation"):
            if getattr(self, f"{name}_rows") and getattr(self, name) is None:
                raise ValueError(
                    f"{name}_rows needs {name}; to split off so many rows, give the count as {name}_fraction"
                )
        if self.stratify and self.group:
            raise ValueError("stratify and group exclude each other; keep the one that matters more")
        return self

    def given(self) -> dict[str, tuple[str | tuple[str, ...], int | None]]:
        """Per split that comes from files of its own: where from, and how many rows at most."""
        held_out = {"validation": (self.validation, self.validation_rows), "test": (self.test, self.test_rows)}
        return {
            "train": (self.source, self.rows),
            **{name: (path, limit) for name, (path, limit) in held_out.items() if path},
        }


def input_files(spec: Prepare) -> tuple[Path, ...]:
    """Every data file that `prepare` will read.

    Raises:
        DataError: one is missing.
        ConfigError: one is given for two splits.
    """
    found: dict[Path, str] = {}
    for name, (path, _) in spec.given().items():
        for file in find_files(path, name):
            other = found.setdefault(file.resolve(), name)
            if other != name:
                raise ConfigError(f"prepare.{name}: {file} is the {other} data too; leave {name} out to split it off")
    return tuple(dict.fromkeys(file for name, (path, _) in spec.given().items() for file in find_files(path, name)))


def prepare(spec: Prepare, *, out: Output, tokenizer_name: str, seed: int) -> None:
    """Write examples and rows of every split, the ledger and a summary into `out`.

    Raises:
        DataError: there is nothing to learn from, or more rows than `refuse_above` cannot be used as they are.
    """
    input_files(spec)
    renderer = Renderer(load_tokenizer(tokenizer_name), spec.supervise)
    ledger = Ledger()
    intakes = {
        name: take_in(path, name, ledger, limit=limit, form=spec.format) for name, (path, limit) in spec.given().items()
    }
    splits = _divide(spec, intakes, seed)
    check_shapes([item.example for items in splits.values() for item in items])
    facts = {cleaner.kind: _clean(cleaner, splits, ledger) for cleaner in spec.cleaners}
    rows = {name: _tokens(splits[name], name, renderer, spec.max_tokens, ledger) for name in SPLITS}
    ledger.write(out / "ledger.jsonl")
    _refuse(spec, ledger, out, rows["train"])
    for name in SPLITS:
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(item.example.to_json(), ensure_ascii=False) + "\n" for item, _ in rows[name])
    save_rows(out / "rows.safetensors", [row for name in SPLITS for _, row in rows[name]])
    summary = {
        "sources": [about for intake in intakes.values() for about in intake.sources],
        "counts": ledger.counts(),
        "splits": {
            name: {**length_table([row for _, row in rows[name]]), "ledger": ledger.counts(name)} for name in SPLITS
        },
        "cleaners": facts,
    }
    if spec.stratify:
        summary["classes"] = {
            name: class_table([item.example for item, _ in rows[name]], spec.stratify) for name in SPLITS
        }
    write_json(out / "summary.json", summary)
    out.metrics.update(_headline(summary))


def _divide(spec: Prepare, intakes: Mapping[str, Intake], seed: int) -> Items:
    """Items per split, those without files of their own split off the source."""
    sizes = {"test": spec.test_fraction, "validation": spec.validation_fraction}
    parts = {name: size for name, size in sizes.items() if name not in intakes and size}
    items = intakes["train"].items
    sides = split([item.example for item in items], parts, seed=seed, stratify=spec.stratify, group=spec.group)
    splits: Items = {name: list(intakes[name].items) if name in intakes else [] for name in SPLITS}
    splits["train"] = []
    for item, side in zip(items, sides, strict=True):
        splits[side].append(item)
    return splits


def _clean(cleaner: Cleaner, splits: Items, ledger: Ledger) -> dict[str, Any]:
    """Take out what a cleaner finds, in place; its facts."""
    findings = cleaner.find({name: [item.example for item in items] for name, items in splits.items()})
    dropped: dict[str, set[int]] = {name: set() for name in splits}
    for drop in findings.drops:
        dropped[drop.split].add(drop.index)
        ledger.settle(splits[drop.split][drop.index].row, "quarantined", drop.reason, split=drop.split)
    for name, items in splits.items():
        splits[name] = [item for index, item in enumerate(items) if index not in dropped[name]]
    return {"dropped": len(findings.drops), **findings.facts}


def _tokens(
    items: Sequence[Item], name: str, renderer: Renderer, longest: int, ledger: Ledger
) -> list[tuple[Item, Row]]:
    """Items that can be learnt from, with their tokens, cut to `longest`."""
    kept = []
    for item, whole in _rendered(items, renderer):
        try:
            if isinstance(whole, DataError):
                raise whole
            row = _cut(whole, longest)
        except DataError as error:
            ledger.settle(item.row, "quarantined", str(error), split=name)
            continue
        if len(whole) > longest:
            reason = f"truncated: {len(whole):,} tokens, the first {longest:,} are kept"
            ledger.settle(item.row, "truncated", reason, split=name, supervised=row.supervised)
        else:
            ledger.settle(item.row, "used", split=name, supervised=row.supervised)
        kept.append((item, row))
    return kept


def _rendered(items: Sequence[Item], renderer: Renderer) -> Iterator[tuple[Item, Row | DataError]]:
    """Items with their tokens, or with why there are none."""
    for start in range(0, len(items), CHUNK):
        some = items[start : start + CHUNK]
        yield from zip(some, renderer.rows(item.example for item in some), strict=True)


def _cut(row: Row, longest: int) -> Row:
    """A row with every sequence cut to `longest` tokens.

    Raises:
        DataError: nothing to learn is left, or answers became the same.
    """
    if len(row) <= longest:
        return row
    cut = tuple(replace(part, tokens=part.tokens[:longest], learn=part.learn[:longest]) for part in row.sequences)
    if not all(part.learn.any() for part in cut):
        raise DataError(
            f"nothing to learn within max_tokens: the answer begins behind token {longest:,} of {len(row):,}"
        )
    if len({part.tokens.tobytes() for part in cut}) < len(cut):
        raise DataError(
            f"nothing to prefer within max_tokens: the first {longest:,} tokens of the answers are the same"
        )
    return replace(row, sequences=cut)


def _refuse(spec: Prepare, ledger: Ledger, out: Output, train: Sequence[object]) -> None:
    """Stop if too many rows are bad, in any of the files, or none is left to learn from."""
    for name, entries in ledger.by_file_split().items():
        bad = [entry for entry in entries if entry.state != "used"]
        if len(bad) <= spec.refuse_above * len(entries) and (name != "train" or train):
            continue
        reasons = ", ".join(f"{count} {reason}" for reason, count in list(ledger.reasons(bad).items())[:3])
        first = f"the first is {bad[0].origin}: {bad[0].reason}"
        long = sum("max_tokens" in (entry.reason or "") or entry.state == "truncated" for entry in bad) * 2 > len(bad)
        mend = "raise prepare.max_tokens" if long else "mend them"
        raise DataError(
            f"{len(bad)} of {len(entries)} rows for {name} cannot be used as they are ({reasons}); {first}; "
            f"{mend}, or raise prepare.refuse_above; all are listed in {out / 'ledger.jsonl'}"
        )


def _headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The counts that a report opens with."""
    counts = summary["counts"]
    rows = {f"{name}_rows": summary["splits"][name]["rows"] for name in SPLITS}
    found = {"rows_in": counts["rows"], **rows, "quarantined": counts["quarantined"], "truncated": counts["truncated"]}
    train = summary["splits"]["train"]
    found |= {f"dropped_by_{kind}": facts["dropped"] for kind, facts in summary["cleaners"].items()}
    return {**found, "train_tokens": train["tokens"], "train_supervised_tokens": train["supervised_tokens"]}


STAGE = Stage("prepare", 1, prepare)
