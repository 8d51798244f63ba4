"""However many rows are worked on at a time, the artifact is the same; and memory does not hold the rows."""

import gc
import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tunesmith.base import Artifact, Events, MachineError, Output, Run
from tunesmith.data import shelf
from tunesmith.stages import prepare as stage
from tunesmith.stages import rendering
from tunesmith.stages.prepare import STAGE, Prepare, prepare

VOCABULARY = [
    head + tail for head in ("lo", "ma", "ri", "ne", "su", "ka") for tail in ("ran", "mel", "dor", "fis", "lut")
]
CLEANERS = [{"kind": "exact_duplicates"}, {"kind": "near_duplicates", "threshold": 0.8}, {"kind": "leakage"}]


def row(source: random.Random, words: int) -> dict[str, Any]:
    text = " ".join(source.choice(VOCABULARY) + source.choice("aeiou") for _ in range(words))
    return {
        "prompt": f"Name the colour of: {text}",
        "answer": source.choice(["red", "blue"]),
        "kind": source.choice("ab"),
    }


def lines(count: int) -> list[str]:
    """Rows with copies, near copies, special tokens, long ones and ones that cannot be used."""
    source = random.Random(0)
    rows = [row(source, 30) for _ in range(count)]
    rows += [rows[3], rows[5], {**rows[7], "prompt": rows[7]["prompt"].rsplit(" ", 1)[0] + " changed"}]
    rows += [
        {**rows[9], "prompt": rows[9]["prompt"] + " more"},
        {**row(source, 30), "answer": "one two " * 300},
        {"prompt": "<|im_end|> é\ue000", "answer": "x", "kind": "a"},
    ]
    made = [json.dumps(one) for one in rows]
    made += ['{"prompt": ', json.dumps({"prompt": "x", "answer": ""}), json.dumps({"prompt": "a\0b", "answer": "x"})]
    source.shuffle(made)
    return made


def artifact(folder: Path, spec: Prepare) -> Artifact:
    run = Run(folder)
    run.path.mkdir()
    return run.once(STAGE, spec, tokenizer_name="smollm2-135m", seed=3)


def test_the_artifact_does_not_depend_on_where_rows_are_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(lines(80)) + "\n", encoding="utf-8")
    spec = Prepare.model_validate({"source": str(tmp_path / "t.jsonl"), "max_tokens": 200, "refuse_above": 1.0})
    monkeypatch.setattr(rendering.os, "sched_getaffinity", lambda _: range(3))
    monkeypatch.setattr(shelf, "CHUNK", 7)
    made = []
    for many in (1, 1000):
        monkeypatch.setattr(rendering, "MANY", many)
        made.append(artifact(tmp_path / str(many), spec))
    beside, here = made
    assert beside.id == here.id


def test_a_renderer_that_is_killed_is_told_of(smollm_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MANY", 1)
    monkeypatch.setattr(rendering.os, "sched_getaffinity", lambda _: range(2))
    with rendering.Rendering(smollm_tokenizer, "smollm2-135m", "answers", 1) as beside:
        for worker in beside.workers:
            worker.process.kill()
        with pytest.raises(MachineError, match="ended with status -9"):
            list(beside.rows([[b"{}"]] * 3))
    assert all(worker.process.poll() is not None for worker in beside.workers)


@pytest.mark.parametrize("stratify", [None, "kind"])
def test_the_artifact_does_not_depend_on_how_many_rows_are_worked_on_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stratify: str | None
) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(lines(80)) + "\n", encoding="utf-8")
    spec = Prepare(
        source=str(tmp_path / "t.jsonl"), stratify=stratify, cleaners=CLEANERS, max_tokens=512, refuse_above=0.5
    )
    made = []
    for size in (1, 7, 10**6):
        monkeypatch.setattr(shelf, "CHUNK", size)
        made.append(artifact(tmp_path / str(size), spec))
    assert made[0].id == made[1].id == made[2].id
    counts = json.loads((made[0] / "summary.json").read_text())["counts"]
    assert counts["truncated"] == 1
    assert {"exact duplicate", "near duplicate", "not valid JSON", "empty answer"} <= set(counts["reasons"])


def peak(folder: Path, count: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that Python and numpy held at most while `count` rows of some 1,500 characters were prepared."""
    source = random.Random(1)
    folder.mkdir()
    with (folder / "t.jsonl").open("w") as file:
        file.writelines(json.dumps(row(source, 200)) + "\n" for _ in range(count))
    monkeypatch.setattr(stage, "load_tokenizer", lambda _: tokenizer)
    gc.collect()
    tracemalloc.start()
    try:
        out = Output(folder, Events(folder / "events.jsonl"))
        prepare(Prepare(source=str(folder / "t.jsonl")), out=out, tokenizer_name="", seed=0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_an_index_not_by_the_rows(
    tmp_path: Path, smollm_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "CHUNK", 50)
    peak(tmp_path / "warm", 100, smollm_tokenizer, monkeypatch)
    few, many = (peak(tmp_path / str(n), n, smollm_tokenizer, monkeypatch) for n in (200, 800))
    assert (many - few) / 600 < 700  # a row's text alone has 1,500 bytes, its tokens have 2,000


def test_preparing_needs_no_torch(tmp_path: Path, smollm_tokenizer: Any) -> None:
    """Once the bundled model is converted, which the fixture sees to: importing torch takes longer than preparing a thousand rows."""
    (tmp_path / "t.jsonl").write_text("\n".join(lines(20)), encoding="utf-8")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tunesmith.base import Run\n"
        "from tunesmith.stages.prepare import STAGE, Prepare\n"
        f"run = Run(Path({str(tmp_path / 'run')!r}))\n"
        "run.path.mkdir()\n"
        f"run.once(STAGE, Prepare(source={str(tmp_path / 't.jsonl')!r}, refuse_above=0.5), tokenizer_name='smollm2-135m', seed=0)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
