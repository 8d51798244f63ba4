"""R4 and X5: whatever is damaged in a checkpoint or an artifact is named and never used; what came before it is."""

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from damage import KINDS, damage, one_byte_changed
from subjects import Subject, Tunesmith

import tunesmith
from tunesmith.base import Artifact, ArtifactError, Run, TunesmithError
from tunesmith.training import checkpoint

TITLE = "damage is named, and what came before is used"
CHANGED = "one changed byte of an artifact is refused"
CHECKPOINT = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def stopped(subject: Subject, folder: Path, model: Path) -> None:
    """A training that was killed when it had two checkpoints."""
    subject.set_up(folder, model)
    with subprocess.Popen(
        subject.command(folder), env=subject.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and len([path for path in subject.checkpoints(folder) if complete(path)]) < 2:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9, "it ended before it could be killed"
    for path in subject.checkpoints(folder):
        if not complete(path):  # what a kill in the middle of a save leaves is another test's subject
            shutil.rmtree(path)
    assert len(subject.checkpoints(folder)) >= 2
    assert not subject.result(folder)


def complete(path: Path) -> bool:
    """Whether a checkpoint has the file that is written last: ours, or the peer's."""
    return (path / "manifest.json").exists() or (path / "trainer_state.json").exists()


def changed(file: Path, older: Path) -> bool:
    """Whether a file is not the same in every checkpoint."""
    return not older.exists() or file.read_bytes() != older.read_bytes()


def go_on(subject: Subject, folder: Path) -> tuple[int, str]:
    """The exit code and what was said: ours through the library, in this process; another's as a program."""
    if isinstance(subject, Tunesmith):
        try:
            tunesmith.finetune(folder / "recipe.yaml", folder=folder / "run")
        except TunesmithError as error:
            return error.exit_code, str(error)
        return 0, ""
    done = subprocess.run(
        subject.command(folder), env=subject.environment(), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr[-300:]


def named(said: str, folder: Path, kind: str, file: str, other: str = "") -> bool:
    """Whether the damaged file is named, of two swapped either; a manifest of another time is told by what does not fit it."""
    if kind == "stale" and file == "manifest.json":
        return folder.name in said
    files = (file, other) if kind == "swapped with another" else (file,)
    return any(f"{folder.name}/{one}:" in said or f"{folder.name}: no readable {one}" in said for one in files)


def test_a_damaged_checkpoint_is_passed_over_and_the_result_is_the_same(subject, tally, tiny_folder, tmp_path, many):
    """Going on with it as a user would: ours with each kind of damage to one of the four files that steps change, a peer with each to each."""
    counted, ours = tally("R4", TITLE, subject.name), isinstance(subject, Tunesmith)
    folder, kept = tmp_path / "here", tmp_path / "kept"  # paths are a part of what a training is known by
    stopped(subject, folder, tiny_folder)
    shutil.copytree(folder, kept, symlinks=True)
    newest, before = subject.checkpoints(folder)[:2]
    files = [path for path in newest.iterdir() if path.is_file() and changed(path, before / path.name)]
    files.sort(key=lambda path: path.stat().st_size, reverse=True)
    code, said = go_on(subject, folder)
    expected = subject.result(folder)
    assert expected, f"undisturbed, it ended with {code}: {said}"
    trials = [(file, kind) for file in files for kind in KINDS]
    if ours:
        trials = [(files[number % 4], kind) for number, kind in enumerate(KINDS)]
    for file, kind in trials[: many(len(trials), 1)]:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, symlinks=True)
        other = next(path for path in reversed(files) if path != file)
        damage(kind, file, other, before / file.name)
        code, said = go_on(subject, folder)
        right = code == 0 and subject.result(folder) == expected
        if ours:
            events = list(Run(folder / "run").events.read("damaged"))
            right = right and any(named(event["reason"], newest, kind, file.name, other.name) for event in events)
        counted.verdict(f"going on: {file.name} {kind}", right, code != 0, said or "other weights")
    if ours:
        pair = [path.name for path in subject.checkpoints(kept)[:2]]
        each_file_of_a_checkpoint(counted, tmp_path, [subject.checkpoints(kept)[0].parent / name for name in pair])
        one_under_the_name_of_another(counted, tmp_path / "named", subject.checkpoints(kept)[:2])


def each_file_of_a_checkpoint(counted, folder, pair):
    """Every kind of damage to every file: the checkpoint before it is the one that is taken."""
    for name in CHECKPOINT:
        for kind in KINDS:
            shutil.rmtree(folder / "pair", ignore_errors=True)
            newest, before = (shutil.copytree(path, folder / "pair" / path.name) for path in pair)
            other = "state.json" if name != "state.json" else "manifest.json"
            damage(kind, newest / name, newest / other, before / name)
            said: list[str] = []
            found = checkpoint.load_newest(folder / "pair", said.append)
            held = found is not None and found.path == before and len(said) == 1
            held = held and named(said[0], newest, kind, name, other)
            counted.verdict(f"{name} {kind}", held, bool(said), f"taken for sound, or not named: {said}")


def one_under_the_name_of_another(counted, folder, pair):
    """Whole, but not what its name says."""
    newest, before = (folder / path.name for path in pair)
    for place in (newest, before):
        shutil.copytree(pair[1], place)
    said: list[str] = []
    found = checkpoint.load_newest(folder, said.append)
    counted.verdict("the one before under the newest's name", found is not None and found.path == before and len(said) == 1)  # fmt: skip


def whole(folder, model, *more):
    """A run of which every stage is done."""
    Tunesmith().set_up(folder, model)
    settings = ("finetune.epochs=0.5", "finetune.batch=8", "evaluate.general=null", "deploy.ungated=true", *more)
    return Run(tunesmith.run(folder / "recipe.yaml", *settings, folder=folder / "run"))


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """The run whose artifacts are damaged."""
    return whole(tmp_path_factory.mktemp("finished"), tiny_folder)


@pytest.fixture(scope="module")
def earlier(tiny_folder, tmp_path_factory):
    """The same with another seed: what may lie in the place of its files."""
    return whole(tmp_path_factory.mktemp("earlier"), tiny_folder, "seed=1")


def artifacts(run):
    return {stage: run.path / state["artifact"] for stage, state in run.states.items()}


def test_every_damaged_file_of_every_artifact_is_refused_by_name(finished, earlier, tally, tmp_path, many):
    counted = tally(
        "R4-artifacts", "a damaged file of any stage's artifact is refused by name, and the stage computed anew"
    )
    for stage, path in artifacts(finished).items():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        kinds = list(KINDS)
        trials = [(file, kind) for place, file in enumerate(files) for kind in (kinds if many(1, 0) else kinds[place % 10 :: 10])]  # fmt: skip
        for file, kind in trials:
            name = file.relative_to(path).as_posix()
            run = Run(tmp_path / "run")
            shutil.rmtree(run.path, ignore_errors=True)
            other, older = tmp_path / "other", artifacts(earlier)[stage] / name
            if kind == "stale" and not (older.exists() and changed(file, older)):
                continue  # another run's is the same
            copy = shutil.copytree(path, run.path / path.name, copy_function=shutil.copy)
            other.write_text("of somebody else")
            damage(kind, copy / name, other, older)
            try:
                run.open(path.name)
                counted.verdict(f"{stage}: {name} {kind}", held=False)
            except ArtifactError as error:
                told = named(str(error), path, kind, name)
                counted.verdict(f"{stage}: {name} {kind}", told, said=True, reason=str(error))
    made_anew(counted, finished, tmp_path / "anew", ("prepare", "initialise", "finetune", "deploy")[: many(4, 1)])
    one_stage_under_the_name_of_another(counted, finished, tmp_path / "named")


def made_anew(counted, finished, folder, stages):
    """A stage whose artifact is damaged is computed again, to the same bits."""
    for stage in stages:
        run = Run(folder / stage)
        shutil.copytree(finished.path, run.path)
        path = artifacts(run)[stage]
        manifest = path / "manifest.json"
        expected = Artifact.open(path).id
        manifest.write_bytes(manifest.read_bytes()[:-1])
        tunesmith.run(run.path)
        said = [event for event in run.events.read("damaged") if event["artifact"] == path.name]
        counted.verdict(f"{stage} again", bool(said) and run.artifact(stage).id == expected)


def one_stage_under_the_name_of_another(counted, finished, folder):
    """Whole, but not what its name says."""
    first, second = (artifacts(finished)[stage] for stage in ("prepare", "initialise"))
    shutil.copytree(first, folder / second.name)
    try:
        Run(folder).open(second.name)
        counted.verdict("prepare under the name of initialise", held=False)
    except ArtifactError as error:
        counted.verdict("prepare under the name of initialise", "holds what was made as prepare-" in str(error), True)


def test_no_changed_byte_is_believed(finished, tally, many):
    counted = tally("X5", CHANGED)
    generator = random.Random(0)
    places = [file for path in artifacts(finished).values() for file in sorted(path.rglob("*")) if file.is_file()]
    for _ in range(many(100, 30)):
        with one_byte_changed(places, generator) as (file, what):
            path = next(one for one in artifacts(finished).values() if file.is_relative_to(one))
            try:
                finished.open(path.name)
                refused = False
            except ArtifactError:
                refused = True
        counted.verdict(f"{file.relative_to(finished.path)} {what}", refused)
    for path in artifacts(finished).values():
        Artifact.open(path)
