"""R10: rows and weights do not depend on how many processes rendered them, nor on which of three runs it is."""

import os
import subprocess
from pathlib import Path

import pytest
from subjects import Subject, demonstrations, hashes, write_rows

from tunesmith.base import Run
from tunesmith.base.spec import validate
from tunesmith.stages import rendering
from tunesmith.stages.prepare import STAGE, Prepare, input_files

PROCESSES = (0, 1, 2, 4)
"""Processes that render beside the one that writes; 0 renders in it, and one process alone is never started but for this."""


def prepared(folder: Path, processes: int, monkeypatch, model: str) -> dict[str, str]:
    """sha256 of every file that came of a preparation in so many processes."""
    started = []

    class Counted(rendering._Worker):
        def __init__(self, *arguments: str) -> None:
            super().__init__(*arguments)
            started.append(self.process.pid)

    def begin(self, tokenizer, name, supervise, count) -> None:
        self.renderer, self.today = rendering.Renderer(tokenizer, supervise), None
        self.workers = [Counted(name, supervise, "") for _ in range(processes)]

    monkeypatch.setattr(rendering.Rendering, "__init__", begin)
    spec = validate(Prepare, {"source": str(folder / "rows.jsonl"), "refuse_above": 1.0}, "recipe.yaml")
    made = Run(folder / f"run-{processes}").once(STAGE, spec, inputs=input_files(spec), tokenizer_name=model, seed=0)
    assert len(started) >= processes
    assert all(not Path(f"/proc/{pid}").exists() for pid in started)
    files = [file for file in made.path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    return hashes(files, made.path)


def test_rows_are_the_same_from_any_number_of_processes(tally, tiny_folder, tmp_path, many, monkeypatch):
    counted = tally("R10", "prepared rows from 0, 1, 2 and 4 processes: bit-identical (training loads no rows in processes)")  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", demonstrations(many(5000, 600)))
    expected = prepared(tmp_path, 0, monkeypatch, str(tiny_folder))
    assert len(expected) > 3
    for processes in PROCESSES[1 : many(4, 2) + 1]:
        found = prepared(tmp_path, processes, monkeypatch, str(tiny_folder))
        differ = [name for name in expected if found.get(name) != expected[name]]
        counted.verdict(f"{processes} processes", found == expected, reason=f"differ: {differ}")


@pytest.mark.torture
def test_the_peer_s_weights_are_the_same_from_any_number_of_processes(peer, tally, tiny_folder, tmp_path):
    """Its processes prepare rows before training, and load batches during it."""
    counted = tally("R10", "rows prepared and batches loaded by 0, 1, 2 and 4 processes: bit-identical weights", peer.name)  # fmt: skip
    ended = []
    for processes in PROCESSES:
        folder = tmp_path / str(processes)
        peer.set_up(folder, tiny_folder)
        command = [*peer.command(folder), "--workers", str(processes)]
        done = subprocess.run(command, env=peer.environment(), capture_output=True, text=True, check=False)
        ended.append(peer.result(folder))
        if processes:
            held = done.returncode == 0 and ended[-1] == ended[0]
            said = f"ended with {done.returncode}: {done.stderr[-250:]}"
            counted.verdict(f"{processes} processes", held, done.returncode != 0, said)
        else:
            assert ended[0], done.stderr[-2000:]


@pytest.mark.torture
def test_three_runs_of_a_seed_end_alike(subject: Subject, tally, tiny_folder, tmp_path):
    counted = tally("R10-runs", "a second and a third run of a seed with one thread: the first one's bits", subject.name)  # fmt: skip
    ended = []
    for number in range(3):
        folder = tmp_path / str(number)
        subject.set_up(folder, tiny_folder)
        threads = {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(subject.command(folder), env={**os.environ, **subject.environment(), **threads}, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-500:]
        ended.append(subject.result(folder))
    for number, one in enumerate(ended[1:], 2):
        counted.verdict(f"run {number}", one == ended[0] != {}, reason="other weights")
