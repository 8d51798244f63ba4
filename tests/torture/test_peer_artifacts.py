"""X1 and X5 on the peer: what opens its models, adapters, rows and templates as documented, and whether it refuses those that are hostile or damaged."""

import gzip
import json
import random
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import one_byte_changed
from fuzzing import MOST_MEMORY
from hostile import Case, Rows, Talk, adapter, corrections, gguf, learnt, model
from hostile_cases import CASES
from subjects import Peer, demonstrations, write_rows
from test_damage import CHANGED
from test_hostile import SECONDS, TEMPORARY, TITLE, judge, seen

from tunesmith.models.gguf_export import write
from tunesmith.models.load import load

pytestmark = pytest.mark.torture

PASSED_OVER = {
    "pickle as prompt.safetensors", "pickle as memory.safetensors", "pickle as model.safetensors.index.json",
    "auto_map of the model", "auto_map of the tokenizer", "auto_map further down",
}  # fmt: skip
"""What the peer may open: it does not look at such files, nor at an index beside whole weights, and runs a model's own code only where it is told to."""
NO_CASE = {"adapter of another scale"}
"""What is hostile only to one who knows the scale from elsewhere than the adapter's file."""
UNREAD = {"README.md", "training_args.bin"}
"""Files of a training that are not looked at to open what it learnt."""


@dataclass
class Opener:
    """The peer, opening what it is asked to in one process."""

    process: subprocess.Popen[str]
    usual: dict[str, set[str]] = field(default_factory=dict)
    """What is said of a sound one, by the way to open it."""

    def ask(self, way: str, folder: Path, name: str, here: bool = False) -> dict[str, Any]:
        """What came of it; `here` opens it in the process itself, so that others find loaded what is loaded then."""
        for place in ("home", TEMPORARY):
            (folder / place).mkdir(exist_ok=True)
        environment = {"HOME": str(folder / "home"), "TMPDIR": str(folder / TEMPORARY)}
        asked = {
            "way": way, "folder": str(folder), "name": name, "here": here,
            "environment": environment, "seconds": SECONDS, "memory": MOST_MEMORY,
        }  # fmt: skip
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return {**told, "warned": sorted(set(told["warned"]) - self.usual.get(way, set()))}

    def sound(self, way: str, folder: Path, name: str) -> dict[str, Any]:
        """What came of a sound one, which a process of its own opens within the limits, so that refusals say something."""
        self.ask(way, folder, name, here=True)
        told = self.ask(way, folder, name)
        self.usual.setdefault(way, set()).update(told["warned"])
        assert told["ended"] == 0, told
        assert "opened" in told, told
        assert told["grown"] <= MOST_MEMORY, told
        return told


@pytest.fixture
def opener(peer, tmp_path_factory) -> Iterator[Opener]:
    """It begins with its imports, which is what takes long."""
    place = tmp_path_factory.mktemp("opener")
    script = Path(__file__).with_name("peer_opens.py")
    home = {"HF_HOME": str(place / "hub"), "TOKENIZERS_PARALLELISM": "false"}
    with (
        (place / "said").open("w") as said,
        subprocess.Popen(
            [str(peer.python), str(script)], env={**peer.environment(), **home}, cwd=place,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
        ) as process,
    ):  # fmt: skip
        yield Opener(process)
        assert process.stdin
        process.stdin.close()


def way_of(case: Case) -> tuple[str, str] | None:
    """How the peer opens what a case is of, and its name; None where it has no such thing."""
    if isinstance(case.open, Rows):
        return "saved" if case.open.name == "data" else "rows", case.open.name
    if isinstance(case.open, Talk):
        return "template", "model"
    ways = {model: ("model", "model"), adapter: ("adapter", "adapter"), corrections: ("merged", "adapter"), gguf: ("gguf", "model.gguf")}  # fmt: skip
    return ways.get(case.open)


def sound_artifacts(folder: Path) -> list[tuple[str, str]]:
    """One of each kind in a folder that holds a model, by how it is opened and its name."""
    learnt()(folder)
    loaded = load(str(folder / "model"), "fp32")
    write(loaded.model, loaded.tokenizer, folder / "model.gguf", "f32")
    write_rows(folder / "rows.jsonl", demonstrations())
    lines = (folder / "rows.jsonl").read_bytes()
    (folder / "rows.json").write_text(json.dumps(demonstrations()))
    (folder / "rows.csv").write_text("text\n" + "a\n" * 9)
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    with zipfile.ZipFile(folder / "rows.zip", "w") as file:
        file.writestr("rows.jsonl", lines)
    table = pa.table({"text": ["a"] * 9})
    pq.write_table(table, folder / "rows.parquet")
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    endings = ("jsonl", "json", "csv", "jsonl.gz", "json.gz", "csv.gz", "zip", "parquet", "arrow")
    others = [("model", "model"), ("adapter", "adapter"), ("merged", "adapter"), ("template", "model"), ("gguf", "model.gguf")]  # fmt: skip
    return [*others, *(("rows", f"rows.{ending}") for ending in endings)]


def has_gguf(peer: Peer) -> bool:
    """Whether the package is there by which it reads such files."""
    return subprocess.run([str(peer.python), "-c", "import gguf"], capture_output=True, check=False).returncode == 0


def test_the_peer_refuses_hostile_artifacts(peer, opener, tiny_folder, tally, tmp_path):
    """Ours, of those kinds that it opens too. Any exception is a refusal, and a warning that a sound one has not is said aloud."""
    counted, folder = tally("X1", TITLE, peer.name), tmp_path / "case"
    ways = {"model", "adapter", "merged", "template", "rows", "saved"} | ({"gguf"} if has_gguf(peer) else set())
    shutil.copytree(tiny_folder, folder / "model")
    for way, name in sound_artifacts(folder):
        if way in ways:
            opener.sound(way, folder, name)
    shutil.rmtree(folder)
    for case in CASES:
        way, name = way_of(case) or ("", "")
        if way not in ways or case.name in NO_CASE:
            continue
        shutil.copytree(tiny_folder, folder / "model")
        for place in ("home", TEMPORARY):
            (folder / place).mkdir()
        case.prepare(folder)
        if isinstance(case.open, Talk):
            (folder / "model" / "chat_template.jinja").write_text(case.open.text(folder))
        before = seen(folder)
        told = opener.ask(way, folder, name)
        after = seen(folder)
        told["elsewhere"] = sorted(str(path) for path in before | after if before.get(path) != after.get(path))
        told["refused"] = "raised" in told
        said = told["ended"] != 0 or told["refused"] or bool(told["warned"])
        harmless = case.harmless or case.name in PASSED_OVER
        judge(
            counted, replace(case, harmless=harmless), folder, told.pop("ended"), told, said, refusal=told.get("raised")
        )


def test_a_changed_byte_of_what_the_peer_learnt(peer, opener, tiny_folder, tally, tmp_path, many):
    """The folder that its training saves, opened with its base; that it answers otherwise then is told in the reason."""
    counted, folder = tally("X5", CHANGED, peer.name), tmp_path / "here"
    peer.set_up(folder, tiny_folder)
    command = [*peer.command(folder)[:3], "--steps", "2", "--save-every", "2"]
    subprocess.run(command, env=peer.environment(), capture_output=True, check=True)
    sound = opener.sound("tuned", folder, "done")
    files = [file for file in sorted((folder / "done").rglob("*")) if file.is_file() and file.name not in UNREAD]
    generator = random.Random(0)
    for _ in range(many(100, 30)):
        with one_byte_changed(files, generator) as (file, what):
            told = opener.ask("tuned", folder, "done")
        answer = "the same answer" if told.get("opened") == sound["opened"] else "another answer"
        said = told["ended"] != 0 or bool(told["warned"])
        reason = f"exit {told['ended']}, opened: {answer}, warned {told['warned']}"
        counted.verdict(
            f"{file.name} {what}", told["ended"] == 0 and "raised" in told, said, reason, refusal=told.get("raised")
        )
    assert opener.ask("tuned", folder, "done")["opened"] == sound["opened"]
