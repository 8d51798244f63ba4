"""X1: hostile artifacts run no code, write nothing elsewhere, do not hang, take little memory, and are refused with a reason."""

import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from fuzzing import MOST_MEMORY, most_held
from hostile import ABSOLUTE, Case
from hostile_cases import CASES
from tally import Tally

import tunesmith
from tunesmith.base import TunesmithError

SECONDS = 5
"""Of the processor's time that opening one may take. Other programs of the machine do not count, so this fails only where it should."""
TEMPORARY = "temporary"
"""The folder of temporary files, as the process is told."""
PATIENCE = 300
"""Seconds on the clock after which it hangs all the same."""


TITLE = "hostile artifacts run no code, write nothing elsewhere, do not hang, take at most 512 MiB, and are refused with a reason"


def test_hostile_artifacts_are_refused(tiny_folder, tally, tmp_path, many):
    counted = tally("X1", TITLE)
    assert len(CASES) >= 60
    for case in CASES[:: many(1, 4)]:
        folder = tmp_path / "case"
        shutil.copytree(tiny_folder, folder / "model")
        ended, told = tried(case, folder)
        judge(counted, case, folder, ended, told, bool(told.get("refused")))


def judge(
    counted: Tally, case: Case, folder: Path, ended: int | None, told: dict[str, Any], said: bool, **facts: Any
) -> None:
    """Count what came of a case, and take away what it made."""
    outside = sorted(path for path in (*folder.parent.iterdir(), ABSOLUTE) if path != folder and path.exists())
    refused = told.get("refused", False) or (case.harmless and told.get("opened", False))
    held = ended == 0 and refused and not outside and not told["elsewhere"] and told["grown"] <= MOST_MEMORY
    reason = f"exit {ended}, outside {[path.name for path in outside]}, {told}"
    counted.verdict(case.name, held, said, reason, seconds=told.get("seconds"), **facts)
    shutil.rmtree(folder)
    for path in outside:
        path.unlink()


def tried(case: Case, folder: Path) -> tuple[int | None, dict[str, Any]]:
    """How a process ended that opened a hostile artifact, and what it came to."""
    context = multiprocessing.get_context("fork")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(case, folder, tell))
    process.start()
    tell.close()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
    try:
        found = told.recv()
    except EOFError:
        found = {"elsewhere": [], "grown": 0}
    assert "unmade" not in found, f"{case.name}: could not be made: {found}"
    return process.exitcode, found


def child(case: Case, folder: Path, tell: Any) -> None:
    """Make and open it, with nobody to ask and little time, and tell by how much memory it grew; nothing that another process sees is touched."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.chdir(folder)
    for name, place in (("HOME", "home"), ("TMPDIR", TEMPORARY)):
        (folder / place).mkdir()
        os.environ[name] = str(folder / place)
    tempfile.tempdir = None  # to be asked for anew
    try:
        case.prepare(folder)
    except BaseException as error:
        tell.send({"unmade": repr(error), "elsewhere": []})
        raise
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS + 1, spent + SECONDS + 1))
    before = seen(folder)
    held, start = most_held(anew=True), time.monotonic()
    try:
        case.open(folder)
        found: dict[str, Any] = {"opened": True}
    except TunesmithError as error:
        found = {"refused": "\n" not in str(error) and len(str(error)) > 20, "said": str(error)}
    except BaseException as error:  # noqa: BLE001  whatever it is, it is told
        found = {"raised": f"{type(error).__name__}: {error}"[:200]}
    found["seconds"], after = round(time.monotonic() - start, 2), seen(folder)
    elsewhere = sorted(str(path) for path in before | after if before.get(path) != after.get(path))
    tell.send({**found, "elsewhere": elsewhere, "grown": most_held() - held})
    tell.close()
    os._exit(0)


def seen(folder: Path) -> dict[Path, int]:
    """When each file and folder was written to; but for the cache, and that something came and went where temporary files are."""
    found = {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if "cache" not in path.parts}
    return {**found, folder / TEMPORARY: 0}


FORBIDDEN = re.compile(
    r"torch\.(load|save)\(|\b(import|from) (pickle|cPickle|dill|joblib|shelve|marshal|cloudpickle|multiprocessing)\b|allow_pickle=True|weights_only"
    r"|\b\w+_object_list\(|\b(all_gather|gather|send|recv|broadcast|scatter)_object\(|ProcessPoolExecutor|__import__\("
    r"|yaml\.(unsafe_|full_)?load\(|\bUnsafeLoader|shell=True|os\.(system|popen)\(|\b(eval|exec)\(|extractall\(|unpack_archive\("
)


def test_the_source_has_no_way_to_run_what_it_reads(tally):
    counted = tally("X1-source", "no pickle, no remote code, no shell and no unpacking in the source")
    sources = sorted(Path(tunesmith.__file__).parent.rglob("*.py"))
    assert len(sources) > 300
    for file in sources:
        text = re.sub(r"\.eval\(\)", "", file.read_text())  # a model's; that of tables takes code
        given = re.findall(r"trust_remote_code.{0,9}", text)
        remote = [one for one in given if not re.match(r'trust_remote_code(=|": )False', one)]
        found = FORBIDDEN.search(text)
        counted.verdict(file.name, not remote and not found, reason=str(remote or found))
