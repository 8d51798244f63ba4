"""Every parser of ours is given what nobody would write: it answers, or refuses in our own words, soon and in little memory."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from malformed import FORMS, good

from tunesmith.base import Artifact, ConfigError, DataError, Events, TunesmithError
from tunesmith.base.artifact import commit
from tunesmith.base.spec import read_yaml
from tunesmith.data.columns import with_columns
from tunesmith.data.corpus import Corpus
from tunesmith.data.example import Example
from tunesmith.data.formats import FORMATS, Format
from tunesmith.data.intake import Item, arriving
from tunesmith.data.ledger import Ledger
from tunesmith.data.render import Renderer
from tunesmith.data.sources import Record
from tunesmith.methods.merging.peft_file import rank_of
from tunesmith.models.gguf_header import check_header
from tunesmith.models.load import load_tokenizer
from tunesmith.stages.recipe import read_recipe

Target = Callable[[bytes], object]


def rows_of(path: Path, renderer: Renderer) -> Target:
    """From a file to tokens, as prepare goes."""

    def read(content: bytes) -> None:
        path.write_bytes(content)
        ledger = Ledger()
        items = with_columns(
            list(arriving(str(path), "train", ledger, [])), {"score": "score"} if b"score" in content else {}, ledger
        )
        Corpus(path.parent).add([item.example for item in items])
        renderer.rows(item.example for item in items[:4])

    return read


def folder_of(path: Path, name: str, read: Callable[[Path], object]) -> Target:
    """A file of a folder, then what reads the folder."""

    def target(content: bytes) -> None:
        (path / name).write_bytes(content)
        read(path)

    return target


def lines(form: str) -> bytes:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    rows: list[dict[str, Any]] = [good(form, number) for number in range(3)]
    rows[1] |= {"score": 1.5, "system": "Be kind.", "history": [["a", "b"]], "tools": tools}
    return "\n".join(map(json.dumps, rows)).encode()


RECIPE = b"""
model: smollm2-135m
seed: &n 3
prepare: {source: rows.jsonl, cleaners: [{kind: leakage, threshold: 0.8}], columns: [a], select: {kind: random, size: 0.5}}
initialise:
  adapter: {kind: lora, rank: *n, targets: [q_proj, v_proj]}
finetune: {objective: {kind: dpo, beta: 0.1}, optimizer: {kind: adamw, learning_rate: 1e-4}, epochs: 1.5}
evaluate: {graders: [{kind: exact}, {kind: json_fields}], gate: {margin: null}}
serve: {log: {redact: ["a+"]}}
"""


@pytest.fixture(scope="module")
def renderer(smollm_tokenizer) -> Renderer:
    return Renderer(smollm_tokenizer)


@pytest.fixture
def targets(tmp_path, renderer, gguf_file) -> dict[str, tuple[Target, list[bytes]]]:
    """Every parser by its name, with inputs that it takes."""
    found: dict[str, tuple[Target, list[bytes]]] = {}
    every = [lines(form) for form in FORMS]
    tables = [
        b'prompt,answer,score\na,"b ""c""",1\nd,e,2\n',
        b"prompt;answer\na;b\n",
        b'messages\n"[{""role"": ""user"", ""content"": ""a""}, {""role"": ""assistant"", ""content"": ""b""}]"\n',
    ]
    listed = [b"[" + one.replace(b"\n", b",\n") + b"]" for one in every] + [
        b'{"data": [{"prompt": "a", "answer": "b"}]}',
        b'{"prompt": ["a", "b"], "answer": ["c", "d"]}',
    ]
    for name, seeds in {
        "jsonl": every,
        "json": listed,
        "csv": tables,
        "txt": [b"one\nmore\n\ntwo\n", b"one\ntwo\n"],
    }.items():
        found[f"rows as {name}"] = rows_of(tmp_path / f"rows.{name}", renderer), seeds
    found["recipe"] = (
        folder_of(tmp_path, "recipe.yaml", lambda folder: read_recipe(folder / "recipe.yaml")),
        [RECIPE, b"prepare:\n  source: a\n"],
    )
    found["setting"] = (
        lambda text: read_recipe(tmp_path / "plain.yaml", (text.decode("utf-8", "surrogateescape"),)),
        [b"finetune.epochs=2", b"initialise.adapter={kind: lora, rank: 4}", b"evaluate.graders=[{kind: exact}]"],
    )
    (tmp_path / "plain.yaml").write_bytes(b"prepare:\n  source: a\n")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.txt").write_text("a")
    made = commit(tmp_path / "work", tmp_path / "made", {"stage": "prepare", "spec": {}, "parents": [], "metrics": {}})
    found["manifest"] = folder_of(made.path, "manifest.json", Artifact.open), [(made / "manifest.json").read_bytes()]
    (tmp_path / "events").mkdir()
    found["events"] = (
        folder_of(tmp_path / "events", "events.jsonl", lambda folder: [*Events(folder / "events.jsonl").read("a"), *Events(folder / "events.jsonl").since(0)]),
        [b'{"event": "a", "time": 1.5}\n{"event": "b", "time": 2}\n'],
    )  # fmt: skip
    (tmp_path / "adapter").mkdir()
    config = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}).encode()
    found["adapter config"] = folder_of(tmp_path / "adapter", "adapter_config.json", rank_of), [config]
    found["GGUF header"] = (
        folder_of(tmp_path, "model.gguf", lambda folder: check_header(folder / "model.gguf")),
        [gguf_file],
    )
    return found


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory) -> bytes:
    """The header of a small GGUF file, and its one tensor."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_types([1, 1, 3])
    writer.add_tensor("token_embd.weight", np.zeros((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_no_input_breaks_a_parser(tally, targets, tmp_path, many):
    counted = tally(
        "X2", "each 200 mutated inputs of a parser are answered or refused in our own words, within 2 s and 512 MiB"
    )
    for name, (target, seeds) in targets.items():
        for batch in range(many(16, 1)):
            broken, reached = fuzz(target, seeds, many(200, 30), batch)
            assert reached > 5, name
            counted.verdict(f"{name}, {batch}", not broken, True, "; ".join(broken[:2]))
    for name in ("arrow", "parquet")[: many(2, 1)]:
        for batch in range(many(16, 1)):
            counted.verdict(f"rows as {name}, {batch}", *tables(tmp_path, name, many(200, 30), batch))
    for batch in range(many(16, 1)):
        broken = conversations(batch, many(200, 30))
        counted.verdict(f"any JSON value as a row, {batch}", not broken, True, broken)


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
    return not broken, True, "; ".join(broken[:2])


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
    renderer, said = Renderer(cached_tokenizer()), list[str]()

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
            said.append(str(error).strip())

    try:
        try_one()
    except Exception as error:  # noqa: BLE001  what Hypothesis found
        return f"{type(error).__name__}: {error}; {getattr(error, '__notes__', '')}"
    return "" if all(said) else "an error that says nothing"


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
