"""R8: the longest batch under a limit of memory: refused before the first step, or trained in smaller passes to the same result, and no process stays."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from subjects import alone, write_rows
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunesmith.base import Run
from tunesmith.models.find import locate
from tunesmith.stages.machine import available_memory

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 2 << 30
ENOUGH = 1250 << 20
"""For the smaller model: less than its whole batch takes, more than one row of it."""

LONGEST = 960
"""Tokens of an answer: more than the longest right one has, and with its prompt no more than the smaller model's context."""


class Group:
    """A memory control group, version 1, in which programs are started."""

    def __init__(self, limit: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tunesmith-torture-", dir=GROUPS))
        (self.path / "memory.limit_in_bytes").write_text(str(limit))

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """A program that is in it from its first page on."""
        inside = ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh", *command]
        return subprocess.run(inside, env=alone(), capture_output=True, text=True, check=False)

    @property
    def processes(self) -> list[str]:
        """Who is still in it."""
        return (self.path / "cgroup.procs").read_text().split()

    @property
    def most(self) -> int:
        """Bytes it ever held."""
        return int((self.path / "memory.max_usage_in_bytes").read_text())


@pytest.fixture
def grouped() -> Iterator[list[Group]]:
    """Where groups are put that are to be removed."""
    if not os.access(GROUPS / "cgroup.procs", os.W_OK):
        pytest.skip(f"no memory control group can be made below {GROUPS}")
    made: list[Group] = []
    yield made
    for group in made:
        for process in group.processes:
            os.kill(int(process), 9)
        group.path.rmdir()


def talks(words: int, rows: int, every: int = 1) -> list[dict[str, object]]:
    """Rows, of every so many of which one has so many words three times and the others have a few."""
    return [
        {"messages": [{"role": "user", "content": f"Tell of {n}."}, {"role": "assistant", "content": f"blue {n} red " * (3 if n % every else words)}]}
        for n in range(10, rows + 10)
    ]  # fmt: skip


def settle(
    folder: Path, model: str, words: int, rows: int, every: int = 1, adapter: str = "full", **finetune: object
) -> Path:
    """A recipe whose batch is all rows; of every so many, one has so many words three times, the others have a few."""
    folder.mkdir()
    write_rows(folder / "rows.jsonl", talks(words, rows + 4, every))
    recipe = {
        "model": model, "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 2, "validation_fraction": 2, "cleaners": [], "refuse_above": 1.0},
        "initialise": {"adapter": {"kind": adapter}},
        "finetune": {"epochs": 1.0, "batch": rows, "share_prefixes": False, "activation_checkpointing": False, "validation": {"rows": 1}, **finetune},
        "evaluate": {"max_tokens": LONGEST},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def command(recipe: Path, run: str, *settings: str) -> list[str]:
    """What a person would type."""
    code = "from tunesmith.cli import main; main()"
    return [sys.executable, "-c", code, "finetune", str(recipe), "--run", str(recipe.parent / run), *settings]


def refused(done: subprocess.CompletedProcess[str], run: Path) -> bool:
    """Whether it said so before the first step."""
    said = re.search(r"training needs about [\d.]+ GB more, this machine has [\d.]+ GB free", done.stderr)
    return done.returncode == 2 and said is not None and not list(Run(run).events.read("step"))


SHAPES = {
    "8 rows of 1,000 tokens": (190, 8, 1), "2 rows of 1,000 tokens": (190, 2, 1), "24 rows of 140 tokens": (20, 24, 1),
    "32 rows, every eighth of 1,000 tokens": (190, 32, 8), "4 rows of 80 tokens": (10, 4, 1),
}  # fmt: skip
"""Batches of LoRA, of which some fit into 2 GB and some do not: words, rows, and of how many one is long."""


@pytest.mark.torture
def test_batches_of_any_shape_are_refused_or_fit(tally, tmp_path, grouped):
    counted = tally("R8-shapes", "2 GB for SmolLM2-135M and batches of several shapes: refused before step 1, or learnt from within them")  # fmt: skip
    for number, (shape, (words, rows, every)) in enumerate(SHAPES.items()):
        recipe = settle(tmp_path / str(number), "smollm2-135m", words, rows, every, "lora")
        grouped.append(Group(LIMIT))
        done, named = fitted(grouped[-1], recipe)
        fits = done.returncode == 0
        held = (fits or (not named and refused(done, recipe.parent / "run-0"))) and not grouped[-1].processes
        counted.note(
            shape, "held" if held else "loud", f"learnt {named}" if fits else done.stderr.strip().splitlines()[-1]
        )


def fitted(group: Group, recipe: Path) -> tuple[subprocess.CompletedProcess[str], str]:
    """How a training ends at last, where each refusal is followed by what it names; and all that was named."""
    named = list[str]()
    while True:
        run = f"run-{len(named)}"
        done = group.run(command(recipe, run, *named[-1:]))
        found = re.search(r"finetune\.micro_batch=\d+", done.stderr)
        if found is None or found.group() in named or not refused(done, recipe.parent / run):
            return done, ", ".join(named)
        named.append(found.group())


def test_what_does_not_fit_is_refused_before_the_first_step(tally, tmp_path, grouped, many):
    counted = tally("R8", "2 GB for SmolLM2-135M and its longest batch: refused before step 1, nothing left behind")
    recipe = settle(tmp_path / "r", "smollm2-135m", words=190, rows=8)
    grouped.append(Group(LIMIT))
    done = grouped[0].run(command(recipe, "group"))
    held = refused(done, recipe.parent / "group") and not grouped[0].processes and grouped[0].most < LIMIT
    counted.verdict("a control group of 2 GB", held, done.returncode != 0, done.stderr[-250:])
    if many(1, 0):
        limited = ["sh", "-c", f'ulimit -d {LIMIT >> 10} && exec "$@"', "sh", *command(recipe, "limit")]
        done = subprocess.run(limited, env=alone(), capture_output=True, text=True, check=False)
        counted.verdict("data segment of 2 GB (ulimit -d)", refused(done, recipe.parent / "limit"), done.returncode != 0, done.stderr[-250:])  # fmt: skip


@pytest.mark.torture
def test_the_peer_within_the_limit(peer, tally, tmp_path, grouped):
    """It holds if it ends well, or says before its first step that memory is short."""
    counted = tally("R8", "2 GB for SmolLM2-135M and its longest batch: learnt from, or refused before step 1, nothing left behind", peer.name)  # fmt: skip
    peer.set_up(tmp_path, locate("smollm2-135m"))
    write_rows(tmp_path / "rows.jsonl", talks(words=190, rows=8))
    asked = [*peer.command(tmp_path), "--full", "--batch", "8", "--steps", "1"]
    grouped.append(Group(LIMIT))
    limited = ["sh", "-c", f'ulimit -d {LIMIT >> 10} && exec "$@"', "sh", *asked]
    for where, done in (
        ("a control group of 2 GB", grouped[0].run(asked)),
        ("data segment of 2 GB (ulimit -d)", subprocess.run(limited, env=peer.environment(), capture_output=True, text=True, check=False)),
    ):  # fmt: skip
        told = "memory" in done.stderr and "training_step" not in done.stderr
        held = (done.returncode == 0 or told) and not grouped[0].processes
        said = "killed by the kernel" if done.returncode == -9 else done.stderr.strip()[-250:]
        counted.verdict(where, held, done.returncode != 0, said)


@pytest.mark.torture
def test_in_smaller_passes_it_fits_and_learns_the_same(tally, tmp_path, grouped, tiny_folder):
    counted = tally(
        "R8-shrunk", "what the refusal names fits under the same limit, with the same effective batch and result"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=128, intermediate_size=512, num_hidden_layers=12, num_attention_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "model")
    plain = {"optimizer": {"kind": "sgd", "learning_rate": 1.0}, "schedule": {"shape": "constant", "warmup": 0}}
    recipe = settle(tmp_path / "r", str(tmp_path / "model"), words=150, rows=8, **plain)
    grouped.append(Group(ENOUGH))
    first = grouped[0].run(command(recipe, "whole"))
    mended = re.search(r"finetune\.micro_batch=\d", first.stderr)
    assert refused(first, recipe.parent / "whole"), first.stderr[-500:]
    assert mended, first.stderr[-500:]
    done = grouped[0].run(command(recipe, "split", mended.group()))
    held = done.returncode == 0 and not grouped[0].processes and grouped[0].most <= ENOUGH
    free = subprocess.run(command(recipe, "free"), env=alone(), capture_output=True, text=True, check=False)
    assert free.returncode == 0, free.stderr[-500:]
    found, wanted = (load_file(next((recipe.parent / run).rglob("adapter/model.safetensors"))) for run in ("split", "free")) if held else ({}, {})  # fmt: skip
    same = bool(wanted) and all(torch.allclose(found[name], one, rtol=0, atol=2e-6) for name, one in wanted.items())
    counted.verdict(f"{mended.group()} in {ENOUGH >> 20} MB", held and same, done.returncode != 0, done.stderr[-250:])
    mixed = settle(tmp_path / "m", str(tmp_path / "model"), words=150, rows=32, every=8, **plain)
    done, named = fitted(grouped[0], mixed)
    held = done.returncode == 0 and not grouped[0].processes
    outcome = "held" if held else "loud" if done.returncode else "silent"
    counted.note("32 rows, every eighth of them long", outcome, f"learnt {named}" if held else done.stderr[-250:])


@pytest.mark.parametrize(("line", "files"), [("4:memory:/a/b", ("memory.limit_in_bytes", "memory.usage_in_bytes")), ("0::/a/b", ("memory.max", "memory.current"))])  # fmt: skip
@pytest.mark.parametrize("inner", ["a/b", "a"])
def test_the_limit_of_the_process_s_own_group_and_of_those_around_it_is_seen(tmp_path, line, files, inner):
    """Pages of files that the group would let go are not counted as used."""
    root = tmp_path / "memory" if "memory" in line else tmp_path
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "membership").write_text(f"9:name=systemd:/\n{line}\n")
    for name, value in zip(files, (5000, 2000), strict=True):
        (root / inner / name).write_text(f"{value}\n")
    (root / inner / "memory.stat").write_text("cache 900\ntotal_inactive_file 700\ninactive_file 700\n")
    assert available_memory(tmp_path, tmp_path / "membership") == 3700
