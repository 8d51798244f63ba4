"""Opens what it is told to as the peer's documentation says: a line of JSON asks on standard input, one answers on standard output, and each is opened in a process forked for it, so that imports are paid once."""

import hashlib
import json
import logging
import os
import re
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import load_dataset, load_from_disk
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TALK = [{"role": "user", "content": "Shade 7?"}]
PATIENCE, LOOK = 300, 0.02
"""Seconds on the clock after which it hangs, and between looks at its memory."""


def model(folder: Path, name: str) -> None:
    """A model's folder, without code of its own."""
    AutoTokenizer.from_pretrained(folder / name)
    AutoModelForCausalLM.from_pretrained(folder / name)


def _attached(folder: Path, name: str) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), folder / name)


def adapter(folder: Path, name: str) -> None:
    """An adapter upon its base."""
    _attached(folder, name)


def merged(folder: Path, name: str) -> None:
    """An adapter, merged with the check for numbers that are not finite."""
    _attached(folder, name).merge_and_unload(safe_merge=True)


@torch.no_grad()
def tuned(folder: Path, name: str) -> str:
    """What a training left, base and all, and a digest of what it makes of a talk."""
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    learnt = AutoPeftModelForCausalLM.from_pretrained(folder / name)
    given = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return hashlib.sha256(learnt(**given).logits.numpy().tobytes()).hexdigest()


def rows(folder: Path, name: str) -> None:
    """A file of rows, whose ending says what it is."""
    load_dataset(str(folder), data_files=name, cache_dir=str(folder / "cache"), split="train")


def saved(folder: Path, name: str) -> None:
    """Rows that `datasets` saved."""
    list(load_from_disk(str(folder / name)))


def template(folder: Path, name: str) -> None:
    """A model's chat template, used."""
    AutoTokenizer.from_pretrained(folder / name).apply_chat_template(TALK)


def gguf(folder: Path, name: str) -> None:
    """A GGUF file."""
    AutoTokenizer.from_pretrained(folder, gguf_file=name)
    AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)


WAYS = {one.__name__: one for one in (model, adapter, merged, tuned, rows, saved, template, gguf)}


def opened(asked: dict[str, Any]) -> dict[str, Any]:
    """What came of opening: what was computed, or the error that ended it; what was said meanwhile."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    for name in ("transformers", "peft", "datasets"):
        logging.getLogger(name).addHandler(handler)
    start, found = time.monotonic(), {}
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found["opened"] = WAYS[asked["way"]](Path(asked["folder"]), asked["name"]) or True
    except BaseException as error:  # noqa: BLE001  whatever ends it counts as its refusal
        found["raised"] = f"{type(error).__name__}: {error}"[:500]
    for name in ("transformers", "peft", "datasets"):
        logging.getLogger(name).removeHandler(handler)
    said = [*heard, *(str(one.message) for one in warned)]
    return {**found, "warned": [one[:2000] for one in said[:8]], "seconds": round(time.monotonic() - start, 2)}


def held(process: int | str, what: str = "VmRSS") -> int:
    """Bytes of memory that a process holds, or held at most (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return 1024 * int(found[1]) if found else 0  # one that has ended holds none


def child(asked: dict[str, Any], tell: int) -> None:
    """Open it with nobody to ask and little of the processor's time, and tell by how much memory it grew."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # to be asked for anew
    resource.setrlimit(resource.RLIMIT_CPU, (asked["seconds"] + 1, asked["seconds"] + 1))
    Path("/proc/self/clear_refs").write_text("5")
    before = held("self", "VmHWM")
    found = opened(asked)
    os.write(tell, json.dumps({**found, "grown": held("self", "VmHWM") - before}).encode())
    os._exit(0)


def answered(asked: dict[str, Any]) -> dict[str, Any]:
    """How a process ended that opened it; one that takes twice the memory it may is ended before others suffer."""
    hear, tell = os.pipe()
    process = os.fork()
    if not process:
        child(asked, tell)
    os.close(tell)
    start, before, most = time.monotonic(), held("self"), 0
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        most = max(most, held(process) - before)
        if most > 2 * asked["memory"] or time.monotonic() - start > PATIENCE:
            os.kill(process, 9)
        time.sleep(LOOK)
    with os.fdopen(hear, "rb") as pipe:
        told = pipe.read()
    return {"grown": most, "warned": [], **(json.loads(told) if told else {}), "ended": os.waitstatus_to_exitcode(status)}  # fmt: skip


def main() -> None:
    """Answer until nothing more is asked; what is to be opened `here` loads what others then find loaded."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(opened(asked) if asked["here"] else answered(asked)), flush=True)


if __name__ == "__main__":
    main()
