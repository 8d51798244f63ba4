"""Every parser of ours is given what nobody would write: it answers, or refuses in our own words, soon and in little memory."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import MOST_MEMORY, NO_WORDS, fuzz, said
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from parser_targets import TEMPLATE, Targets, targets

from tunesmith.base import ConfigError, DataError, TunesmithError
from tunesmith.base.spec import read_yaml
from tunesmith.data.columns import with_columns
from tunesmith.data.corpus import Corpus
from tunesmith.data.example import Example
from tunesmith.data.formats import FORMATS, Format
from tunesmith.data.intake import Item, arriving
from tunesmith.data.ledger import Ledger
from tunesmith.data.render import Renderer
from tunesmith.data.sources import Record
from tunesmith.models.load import load_tokenizer


@pytest.fixture(scope="module")
def renderer(smollm_tokenizer) -> Renderer:
    return Renderer(smollm_tokenizer)


@pytest.fixture
def parsers(tmp_path, renderer, tiny_folder) -> Targets:
    return targets(tmp_path, renderer, tiny_folder)


def test_no_input_breaks_a_parser(tally, parsers, tmp_path, many):
    counted = tally(
        "X2", "each 200 mutated inputs of a parser are answered or refused in our own words, within 2 s and 512 MiB"
    )
    for name, (target, seeds) in parsers.items():
        for batch in range(many(2 if name == TEMPLATE else 16, 1)):
            broken, reached = fuzz(target, seeds, many(200, 5 if name == TEMPLATE else 30), batch)
            assert reached > 5, name
            counted.verdict(f"{name}, {batch}", not broken, said(broken), "; ".join(broken[:2]))
    for name in ("arrow", "parquet")[: many(2, 1)]:
        for batch in range(many(16, 1)):
            counted.verdict(f"rows as {name}, {batch}", *tables(tmp_path, name, many(200, 30), batch))
    for batch in range(many(16, 1)):
        broken = conversations(batch, many(200, 30))
        counted.verdict(f"any JSON value as a row, {batch}", not broken, said([broken]), broken)


def test_memory_is_seen_each_time_and_called_silent():
    """The seed takes as much before, so that the most that was ever held would tell nothing."""
    broken, _ = fuzz(lambda _: len(b"x" * (MOST_MEMORY + (64 << 20))), [b"a"], 2, 0)
    assert len(broken) == 2
    assert not said(broken)
    assert said(["ValueError: of b'a'"])
    assert not said(["Hang: more than 2.0 s of b'a'"])


def tables(folder: Path, name: str, count: int, seed: int) -> tuple[bool, bool, str]:
    """Whether the reader of tables stands it, in a process of its own; whether it said anything; what."""
    table = pa.Table.from_pylist([{"prompt": f"a{number}", "score": 0.5, "m": [{"role": "é"}]} for number in range(4)])
    pq.write_table(table, folder / "seed.parquet", compression="none")
    with pa.OSFile(str(folder / "seed.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("fuzzing.py")), name, str(folder), str(count), str(seed)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    broken = (
        json.loads(done.stdout)[0]
        if done.returncode == 0
        else [f"it ended with {done.returncode}: {done.stderr[-200:]}"]
    )
    return not broken, said(broken), "; ".join(broken[:2])


LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["user", "assistant", "tool", "f", "gpt", "human", "function_call", '{"a": 1}', "<|im_end|>"])
)
NAMED = st.sampled_from(
    [
        "role",
        "content",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "from",
        "value",
        "type",
        "text",
        "tool_call_id",
        "id",
        "parameters",
    ]
)
VALUE = st.recursive(
    LEAF, lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMED, below, max_size=4), max_leaves=8
)


def conversations(seed: int, count: int) -> str:
    """What goes wrong when fields of every format hold any JSON value (Hypothesis); nothing if all is well."""
    renderer, words = Renderer(cached_tokenizer()), list[str]()

    @hypothesis_seed(seed)
    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(FORMATS), st.data())
    def try_one(form: Format, data: st.DataObject) -> None:
        value = {name: data.draw(VALUE) for name in (*form.fields, *form.optional)}
        try:
            example = form.example(Record("a.jsonl:1", value))
            Corpus().add([example])
            renderer.row(example)
        except TunesmithError as error:
            words.append(str(error).strip())

    try:
        try_one()
    except Exception as error:  # noqa: BLE001  what Hypothesis found
        return f"{type(error).__name__}: {error}; {getattr(error, '__notes__', '')}"
    return "" if all(words) else NO_WORDS


cached_tokenizer = cache(lambda: load_tokenizer("smollm2-135m"))


CRASHES: dict[str, tuple[str, bytes]] = {
    "a list as speaker": ("a.jsonl", b'{"conversations": [{"from": ["human"], "value": "a"}, {"from": "gpt", "value": "b"}]}'),
    "a number as history": ("b.jsonl", b'{"instruction": "a", "input": "", "output": "b", "history": 5}'),
    "carriage returns alone": ("f.csv", b"prompt,answer\ra,b\r"),
    "a number alone": ("c.json", b"42"), "a number of 5,000 digits in a list": ("d.json", b'[{"a": ' + b"9" * 5000 + b"}]"),
    "a deep value with an escape": ("e.jsonl", b'{"prompt": "\\u0041", "answer": "b", "m": ' + b"[" * 900 + b"]" * 900 + b"}"),
}  # fmt: skip
"""What broke a parser once."""


@pytest.mark.parametrize("what", CRASHES)
def test_what_broke_a_parser_once_is_refused(what, tmp_path):
    name, content = CRASHES[what]
    (tmp_path / name).write_bytes(content)
    ledger = Ledger()
    refused = pytest.raises(DataError, match=re.escape(name)) if not name.endswith(".jsonl") else nullcontext()
    with refused:
        assert list(arriving(str(tmp_path / name), "train", ledger, [])) == []
        assert ledger.counts()["quarantined"] == 1


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]", "a: " + "[" * 1500, "a: 2020-13-45", "x0: &a [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(f"x{n + 1}: &{'abcdefgh'[n + 1]} [{', '.join(['*' + 'abcdefgh'[n]] * 10)}]" for n in range(7))],
    ids=["within itself", "deep", "no date", "aliases of aliases"],
)  # fmt: skip
def test_a_recipe_that_yaml_cannot_build_is_refused(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml.*not valid YAML"):
        read_yaml(tmp_path / "a.yaml")


def test_a_number_too_large_for_a_column_is_quarantined():
    ledger = Ledger()
    row = ledger.enter("a.jsonl:1", "train")
    assert (
        with_columns([Item(row, Example("a.jsonl:1", text="a", meta={"score": 10**400}))], {"score": "score"}, ledger)
        == []
    )
    assert ledger.counts()["quarantined"] == 1
