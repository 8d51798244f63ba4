"""Prepare: from a person's files to examples and tokens that a model can learn from, every row accounted for."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunesmith.base import ConfigError, DataError, Output, Spec, Stage
from tunesmith.base.files import write_json
from tunesmith.data.canaries import Canaries
from tunesmith.data.classes import NONE, values
from tunesmith.data.cleaners import Cleaner
from tunesmith.data.cleaners.exact_duplicates import ExactDuplicates
from tunesmith.data.cleaners.leakage import Leakage
from tunesmith.data.cleaners.secrets import Secrets
from tunesmith.data.corpus import View
from tunesmith.data.example import Example, Row
from tunesmith.data.fitting import cut, windows
from tunesmith.data.formats import names
from tunesmith.data.intake import check_shapes
from tunesmith.data.ledger import Ledger, label
from tunesmith.data.prepared import SPLITS
from tunesmith.data.render import Renderer
from tunesmith.data.rows_file import RowWriter
from tunesmith.data.shelf import chunks
from tunesmith.data.sources import find_files
from tunesmith.data.tables import Lengths, commonest
from tunesmith.methods.selection import Selector
from tunesmith.models.find import load_tokenizer

from .rendering import Rendering
from .taken import Taken, clean, divide, select, take_in


class Prepare(Spec):
    """Which rows are learnt from, which are held out, and what is done about bad ones."""

    source: str | tuple[str, ...]
    """Data to learn from: a file (.jsonl, .json, .csv, .tsv, .txt, .md, each also with .gz; .parquet, .arrow), a glob,
    a folder, or a list of these."""
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
    """What keeps its proportions in what is split off, named as in `classes`."""
    group: str | None = None
    """Field of which each value stays on one side as a whole, for example a user or a document."""
    classes: str | None = None
    """What a row's class is, for `finetune.balance` and for counting: a field beside it, `answer`, or a field within a JSON answer such as
    `answer.role`. A `*` takes every field, a list each of its entries; of several values the one that fewest training rows have is the class."""
    weight: str | None = None
    """Field with a number that says how much a row counts in the loss of `sft`; null counts all alike."""
    columns: tuple[str, ...] = ()
    """Further fields with a number that an objective reads, such as the `score` or the `margin` of rows for `reward`."""
    max_tokens: int = Field(default=1024, ge=8)
    """Tokens of a row, prompt and answer together, beyond which it is cut off on the right; plain text becomes several rows instead."""
    join: int = Field(default=0, ge=0)
    """Characters up to which paragraphs of a .txt or .md file that follow each other are one row, so that what was said before is known; 0 makes
    each a row."""
    overlap: int = Field(default=1, ge=1)
    """Tokens that a row of a longer plain text has in common with the one before it: read again, and learnt and scored once. With 1 all but the
    first token of a text is learnt; more let the beginning of each row know what came before."""
    supervise: Literal["answers", "all"] = "answers"
    """What is learnt: what the assistant says, or the prompt too."""
    cleaners: tuple[Cleaner, ...] = (Secrets(), ExactDuplicates(), Leakage())
    """What looks for rows that should not be there. near_duplicates is off unless named: augmented rows are alike
    on purpose."""
    select: Selector | None = None
    """Which rows are learnt from, of those that cleaners leave; null learns from all. Test and validation rows stay what they are."""
    canaries: Canaries | None = None
    """Random numbers shown in training beside the rows, by which `evaluate` measures what is remembered word by word; no other figure knows them."""
    refuse_above: float = Field(default=0.2, ge=0, le=1)
    """Share of rows, quarantined or truncated, above which nothing is prepared and the reasons are shown instead; of rows chosen by `select`, truncated
    ones."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.format not in ("auto", *names()):
            raise ValueError(f"format {self.format!r} does not exist; there are auto, {', '.join(names())}")
        for name in ("test", "validation"):
            if getattr(self, f"{name}_rows") and getattr(self, name) is None:
                raise ValueError(
                    f"{name}_rows needs {name}; to split off so many rows, give the count as {name}_fraction"
                )
        if 2 * self.overlap > self.max_tokens:
            raise ValueError(
                f"overlap {self.overlap} is more than half of max_tokens; rows would hold little that is new"
            )
        if self.stratify and self.group:
            raise ValueError("stratify and group exclude each other; keep the one that matters more")
        return self

    def settled(self) -> Self:
        """With what depends on this machine decided."""
        return self if self.select is None else self.model_copy(update={"select": self.select.settled()})

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


def prepare(spec: Prepare, *, out: Output, tokenizer_name: str, seed: int, draw: int | None = None) -> None:
    """Write examples and rows of every split, the ledger and a summary into `out`.

    Rows are held out by `seed`; those to learn from are selected by `draw`, or by `seed` too.

    Raises:
        DataError: there is nothing to learn from, or more rows than `refuse_above` cannot be used as they are.
    """
    input_files(spec)
    tokenizer = load_tokenizer(tokenizer_name)
    taken = take_in(spec, out.path)
    with (
        Rendering(tokenizer, tokenizer_name, spec.supervise, len(taken.corpus)) as rendering,
        RowWriter(out / "rows.safetensors") as writer,
    ):
        splits = divide(spec, taken, seed)
        if len(taken.shapes) > 1:
            learnt = [view for name, view in splits.items() if name != "test" or spec.test is None]
            check_shapes(example for view in learnt for example in view)  # a test file only has to have right answers
        facts = clean(spec, splits, taken)
        selected = select(spec, splits, rendering, taken, tokenizer_name, seed if draw is None else draw)
        tables = {name: _write(splits[name], name, spec, rendering, taken, writer) for name in SPLITS}
        taken.ledger.write(out / "ledger.jsonl")
        _refuse(spec, taken.ledger, out, len(tables["train"].lengths))
        _refuse_cut(spec, taken.ledger, out)
        if spec.classes and not tables["train"].classes.keys() - {NONE}:
            raise DataError(
                f"prepare.classes: no row for train has {spec.classes!r}; name a field beside the rows, `answer`, or one in a JSON answer"
            )
    summary = _summary(spec, taken, tables, facts) | ({"today": rendering.today} if rendering.today else {})
    if selected:
        summary["selection"] = selected
    write_json(out / "summary.json", summary)
    out.metrics.update(_headline(summary))


@dataclass
class Table:
    """What is counted while a split is written."""

    lengths: Lengths
    classes: Counter[str]
    """Rows of each value."""


def _write(view: View, name: str, spec: Prepare, rendering: Rendering, taken: Taken, writer: RowWriter) -> Table:
    """Write a split's examples and their tokens, cut to `max_tokens`, and settle each row; some rows at a time."""
    table = Table(Lengths(), Counter())
    lines = (list(View(taken.corpus, part).lines()) for part in chunks(view.numbers))
    strict = name == "train" or name not in spec.given()
    with (writer.path.parent / f"{name}.jsonl").open("wb") as file:
        for numbers, (asked, rows) in zip(chunks(view.numbers), rendering.rows(lines), strict=True):
            for number, line, whole in zip(numbers, asked, rows, strict=True):
                found = _settled(whole, line, taken.rows[number], name, spec, taken.ledger)
                if found and (path := spec.classes or spec.stratify):
                    classes = _classes(Example.from_json(json.loads(line)), path, strict)
                    found = [replace(row, classes=classes) for row in found]
                    table.classes.update(list(classes or (NONE,)) * len(found))
                for row in found:
                    file.write((line if len(found) == 1 else _part(line, row, rendering.renderer)) + b"\n")
                    writer.add(row)
                    table.lengths.add(row)
    return table


def _classes(example: Example, path: str, strict: bool) -> tuple[str, ...]:
    """What a row is of; rows held out in files of their own are not drawn or weighed, and may lack the field."""
    try:
        return values(example, path)
    except DataError:
        if strict:
            raise
        return ()


def _settled(whole: Row | DataError, line: bytes, number: int, name: str, spec: Prepare, ledger: Ledger) -> list[Row]:
    """The rows that an example is learnt as, entered in the ledger; none if it cannot be."""
    longest = spec.max_tokens
    try:
        if isinstance(whole, DataError):
            raise whole
        if len(whole) > longest and Example.from_json(json.loads(line)).text is not None:
            ledger.settle(number, "used", split=name, supervised=whole.supervised)
            return windows(whole, longest, spec.overlap)
        row = cut(whole, longest)
    except DataError as error:
        ledger.settle(number, "quarantined", str(error), split=name)
        return []
    if len(whole) > longest:
        reason = f"truncated: {len(whole):,} tokens, the first {longest:,} are kept"
        ledger.settle(number, "truncated", reason, split=name, supervised=row.supervised)
    else:
        ledger.settle(number, "used", split=name, supervised=row.supervised)
    return [row]


def _part(line: bytes, row: Row, renderer: Renderer) -> bytes:
    """An example of plain text with what of it a row holds: row i stays example i as tokens."""
    text = renderer.decode(row.sequences[0].tokens.tolist())
    return json.dumps({**json.loads(line), "text": text}, ensure_ascii=False).encode()


def _refuse(spec: Prepare, ledger: Ledger, out: Output, train: int) -> None:
    """Stop if too many rows are bad, in any of the files, or none is left to learn from."""
    for name in ledger.came():
        found = ledger.counts(came_by=name)
        unusable = found["truncated"] + found["quarantined"]
        if unusable <= spec.refuse_above * found["rows"] and (name != "train" or train):
            continue
        bad = [entry for entry in ledger.entries(came_by=name) if entry.state in ("truncated", "quarantined")]
        reasons = ", ".join(
            f"{n} {why}" for why, n in Counter(label(entry.reason or "") for entry in bad).most_common(3)
        )
        first = f"the first is {bad[0].origin}: {bad[0].reason}"
        long = sum("max_tokens" in (entry.reason or "") or entry.state == "truncated" for entry in bad) * 2 > len(bad)
        mend = "raise prepare.max_tokens" if long else "mend them"
        raise DataError(
            f"{len(bad)} of {found['rows']} rows for {name} cannot be used as they are ({reasons}); {first}; "
            f"{mend}, or raise prepare.refuse_above; all are listed in {out / 'ledger.jsonl'}"
        )


def _refuse_cut(spec: Prepare, ledger: Ledger, out: Output) -> None:
    """Stop if too many of the rows to learn from are cut off; those that were not chosen, whole or not, do not make it less."""
    found = ledger.counts("train")
    learnt = found["used"] + found["truncated"]
    if found["truncated"] > spec.refuse_above * learnt and spec.select is not None:
        raise DataError(
            f"{found['truncated']} of {learnt} rows chosen to learn from are longer than prepare.max_tokens={spec.max_tokens}; raise it, choose other rows by "
            f"prepare.select, or raise prepare.refuse_above; all are listed in {out / 'ledger.jsonl'}"
        )


def _summary(spec: Prepare, taken: Taken, tables: Mapping[str, Table], cleaned: dict[str, Any]) -> dict[str, Any]:
    """What came in, what became of it, and what cleaners found."""
    summary = {
        "sources": taken.sources,
        "group": spec.group,
        "counts": taken.ledger.counts(),
        "splits": {
            name: {**table.lengths.table(), "ledger": taken.ledger.counts(name)} for name, table in tables.items()
        },
        "cleaners": cleaned,
    }
    if spec.classes or spec.stratify:
        summary["classes"] = {name: commonest(table.classes) for name, table in tables.items()}
    return summary


def _headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The counts that a report opens with."""
    counts = summary["counts"]
    rows = {f"{name}_rows": summary["splits"][name]["rows"] for name in SPLITS}
    found = {"rows_in": counts["rows"], **rows, "quarantined": counts["quarantined"], "truncated": counts["truncated"]}
    if "selection" in summary:
        found["unchosen"] = counts.get("unchosen", 0)
    train = summary["splits"]["train"]
    found |= {f"dropped_by_{kind}": facts["dropped"] for kind, facts in summary["cleaners"].items()}
    return {**found, "train_tokens": train["tokens"], "train_supervised_tokens": train["supervised_tokens"]}


STAGE = Stage("prepare", 8, prepare)
