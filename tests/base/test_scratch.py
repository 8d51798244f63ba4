"""What a killed attempt of a stage goes on from lasts until the artifact is whole, and no longer."""

from pathlib import Path

import pytest

from tunesmith.base import Run, Spec, Stage, artifact


class Cook(Spec):
    """How to cook."""


class Cooking:
    """A stage that counts how often it really ran, and leaves something to go on from."""

    def __init__(self):
        self.ran, self.found = 0, []

    def __call__(self, spec, *parents, out):
        self.ran += 1
        self.found = sorted(path.name for path in out.path.iterdir())
        (out / "soup.txt").write_text("salted")
        out.metrics["salt"] = 1
        (out / "pots" / "large").mkdir(parents=True, exist_ok=True)
        (out / "pots" / "large" / "stock").write_text("half of the work")
        out.scratch = ("pots",)


@pytest.fixture
def run(tmp_path):
    found = Run(tmp_path / "run")
    with found.lock():
        yield found


@pytest.fixture
def cook():
    return Cooking()


@pytest.fixture
def stage(cook):
    return Stage("cook", 1, cook)


@pytest.fixture
def killed_in(run, stage, monkeypatch):
    """Computes the stage up to a function; gives the folder that is left."""

    def kill(where):
        def killed(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(where, killed)
            with pytest.raises(KeyboardInterrupt):
                run.once(stage, Cook())
        return next(run.path.glob("*.partial"))

    return kill


def test_it_is_no_part_of_the_artifact(run, stage):
    made = run.once(stage, Cook())
    assert sorted(path.name for path in made.path.iterdir()) == ["manifest.json", "soup.txt"]
    assert Run(run.path).artifact("cook").id == made.id


def test_no_time_is_spent_on_flushing_what_goes(run, stage, monkeypatch):
    flushed, flush = list[Path](), artifact.sync_folder
    monkeypatch.setattr(artifact, "sync_folder", lambda folder: (flushed.append(folder), flush(folder)))
    run.once(stage, Cook())
    assert flushed
    assert not [folder for folder in flushed if "pots" in folder.parts]


@pytest.mark.parametrize("where", ["shutil.rmtree", "pathlib.Path.rename"])
def test_a_commit_that_was_killed_is_ended_and_nothing_is_done_again(run, stage, cook, killed_in, where):
    work = killed_in(where)
    assert (work / "manifest.json").exists()
    made = run.once(stage, Cook())
    assert cook.ran == 1
    assert sorted(path.name for path in made.path.iterdir()) == ["manifest.json", "soup.txt"]
    assert made.metrics == {"salt": 1}
    assert run.states["cook"]["state"] == "done"
    assert not work.exists()


def test_a_kill_before_leaves_it_to_go_on_from(run, stage, cook, killed_in):
    killed_in("tunesmith.base.artifact.write_sealed")
    run.once(stage, Cook())
    assert (cook.ran, cook.found) == (2, ["pots", "soup.txt"])


def test_what_was_damaged_meanwhile_is_made_anew_from_it(run, stage, cook, killed_in):
    (killed_in("shutil.rmtree") / "soup.txt").write_text("spilt")
    made = run.once(stage, Cook())
    assert (cook.ran, cook.found) == (2, ["pots", "soup.txt"])
    assert (made / "soup.txt").read_text() == "salted"
