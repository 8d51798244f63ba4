"""An artifact: a folder whose manifest names its stage, spec, parents and the hash of every file in it."""

import json
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import ArtifactError
from .files import UNFINISHED, digest, sealed, sha256, sync_folder, write_sealed
from .launched import usable_cores

MANIFEST = "manifest.json"
KEY_LENGTH = 12


@dataclass(frozen=True)
class Artifact:
    """A committed folder; `artifact / "file"` is a path inside it."""

    path: Path
    manifest: dict[str, Any]

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def id(self) -> str:
        """Digest of the content: equal for equal files, whatever the folder is called and whenever it was made."""
        return digest({name: entry["sha256"] for name, entry in self.manifest["files"].items()})

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage measured."""
        found: dict[str, Any] = self.manifest["metrics"]
        return found

    @classmethod
    def open(cls, path: Path) -> "Artifact":
        """Read and verify an artifact.

        Raises:
            ArtifactError: it is missing, or a file is absent, cut, added, a link, or has other bytes than were committed.
        """
        again = f"delete {path} and run again to make it anew"
        manifest = manifest_of(path)
        if manifest is None:
            raise ArtifactError(f"{path}: no readable {MANIFEST}; {again}")
        there = _files(path, again)
        for name, entry in manifest["files"].items():
            if name not in there:
                file = PurePosixPath(name)
                outside = file.is_absolute() or ".." in file.parts
                wrong = f"{path}: names {name!r}, which is outside it" if outside else f"{path / name}: is missing"
                raise ArtifactError(f"{wrong}; {again}")
            if there[name].stat().st_size != entry["bytes"] or sha256(there[name]) != entry["sha256"]:
                raise ArtifactError(f"{path / name}: differs from what was committed; {again}")
        if added := sorted(there.keys() - manifest["files"].keys()):
            raise ArtifactError(f"{path / added[0]}: was put there after the rest was committed; {again}")
        return cls(path, manifest)


def commit(work: Path, final: Path, facts: dict[str, Any], scratch: tuple[str, ...] = ()) -> Artifact:
    """Turn the folder `work` into the artifact `final`, durably and in one step.

    Every file is flushed, then the manifest, then the folder is renamed and its parent flushed: whatever instant
    the power fails at, `final` is either absent or whole. What is in the folders `scratch` is not, and goes when the
    manifest is there, so that until then the work can go on from it, and from then on `settled` ends what was begun.
    """
    files = {}
    for file in sorted(path for path in work.rglob("*") if path.is_file() and not _unfinished(path, work)):
        name = file.relative_to(work)
        if name.parts[0] in scratch:
            continue
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        files[name.as_posix()] = {"sha256": sha256(file), "bytes": file.stat().st_size}
    for folder in [path for path in work.rglob("*") if path.is_dir()]:
        if folder.relative_to(work).parts[0] not in scratch:
            sync_folder(folder)
    manifest = json.loads(json.dumps({**facts, "created": round(time.time(), 3), "files": files}))
    write_sealed(work / MANIFEST, manifest)
    return _settle(work, final, manifest)


def settled(work: Path, final: Path, facts: dict[str, Any]) -> Artifact | None:
    """The artifact of these facts whose commit was killed when all but its name was there; None if there is none, or it is not whole."""
    manifest = manifest_of(work)
    if manifest is None or any(manifest.get(name) != value for name, value in facts.items()):
        return None
    for name, entry in manifest["files"].items():
        if not (work / name).is_file() or sha256(work / name) != entry["sha256"]:
            return None
    return _settle(work, final, manifest)


def _settle(work: Path, final: Path, manifest: dict[str, Any]) -> Artifact:
    """Let go of what the manifest does not name, and give the folder its own name."""
    named = {MANIFEST, *(PurePosixPath(name).parts[0] for name in manifest["files"])}
    for other in [path for path in work.iterdir() if path.name not in named]:
        if other.is_dir() and not other.is_symlink():
            shutil.rmtree(other)
        else:
            other.unlink()
    if final.exists():
        shutil.rmtree(final)
    work.rename(final)
    sync_folder(final.parent)
    return Artifact(final, manifest)


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """What an artifact says of itself, if every byte of that is as it was written; of its files nothing is known yet."""
    manifest = sealed(folder / MANIFEST) or {}
    try:
        listed = all({"bytes", "sha256"} <= entry.keys() for entry in manifest["files"].values())
    except (AttributeError, KeyError):
        return None
    return manifest if listed else None


def name_of(facts: dict[str, Any]) -> str:
    """What the folder of an artifact is called: its stage, and a digest of all that it was made from."""
    try:
        made_from = {name: facts[name] for name in ("stage", "version", "spec", "context", "inputs")}
        parents = [parent["id"] for parent in facts["parents"]]
        return f"{facts['stage']}-{digest({**made_from, 'parents': parents})[:KEY_LENGTH]}"
    except (KeyError, TypeError):
        return "something else"


def _files(folder: Path, again: str) -> dict[str, Path]:
    """Every file in an artifact's folder by its name there, but for the manifest.

    Raises:
        ArtifactError: a link, which may point anywhere, or something that is no file.
    """
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ArtifactError(f"{path}: is a link or no file, and artifacts hold only files; {again}")
        if path.is_file() and not _unfinished(path, folder):
            found[path.relative_to(folder).as_posix()] = path
    return found


def _unfinished(file: Path, work: Path) -> bool:
    """Whether a file is the manifest, or what a killed commit or a killed atomic write left."""
    return file == work / MANIFEST or UNFINISHED.fullmatch(file.name) is not None


@cache
def environment() -> dict[str, Any]:
    """What ran: versions, processor and cores; written into every manifest."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "platform": platform.platform(), "cores": usable_cores()}
    found["processor"] = _processor()
    for package in ("tunesmith", "torch", "transformers", "tokenizers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
