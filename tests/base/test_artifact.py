import json
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.base import Artifact, ArtifactError, ProofError
from tunesmith.base.artifact import commit
from tunesmith.base.files import digest, sha256, write_json
from tunesmith.base.proof import Proof


def made(folder, name="a", text="content"):
    work = folder / f"{name}.partial"
    (work / "below").mkdir(parents=True)
    (work / "one.txt").write_text(text)
    (work / "below" / "two.bin").write_bytes(bytes(range(256)))
    return commit(work, folder / name, {"stage": "s", "spec": {}, "metrics": {"loss": 0.1234567890123}})


def test_a_committed_folder_opens_and_lists_every_file(tmp_path):
    artifact = made(tmp_path)
    again = Artifact.open(tmp_path / "a")
    assert set(again.manifest["files"]) == {"one.txt", "below/two.bin"}
    assert again.metrics == {"loss": 0.1234567890123}
    assert (again / "one.txt").read_text() == "content"
    assert again.id == artifact.id
    assert not (tmp_path / "a.partial").exists()


def test_the_id_is_of_the_content_alone(tmp_path):
    assert made(tmp_path, "a").id == made(tmp_path, "b").id != made(tmp_path, "c", "other").id


@pytest.mark.parametrize("name", ["one.txt", "below/two.bin", "manifest.json"])
def test_damage_is_seen(tmp_path, name):
    def cut(path):
        os.truncate(path, path.stat().st_size - 1)

    def grow(path):
        path.write_bytes(path.read_bytes() + b"x")

    def flip(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    for number, harm in enumerate((cut, grow, flip, lambda path: path.unlink())):
        folder = made(tmp_path, f"a{number}").path
        harm(folder / name)
        with pytest.raises(ArtifactError, match="run again") as caught:
            Artifact.open(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_manifest_is_believed(tmp_path, place, bit):
    path = tmp_path / "a" if (tmp_path / "a").exists() else made(tmp_path).path
    manifest = path / "manifest.json"
    sound = manifest.read_bytes()
    content = bytearray(sound)
    content[int(place * len(content))] ^= 1 << bit
    manifest.write_bytes(content)
    try:
        with pytest.raises(ArtifactError, match=r"no readable manifest\.json"):
            Artifact.open(path)
    finally:
        manifest.write_bytes(sound)


def resealed(folder, **changes):
    """What somebody who knows the format could make of a manifest."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    del manifest["seal"]
    write_json(path, {**manifest, "seal": digest(manifest)})


def test_a_manifest_without_its_seal_is_not_believed(tmp_path):
    folder = made(tmp_path).path
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["seal"]
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(ArtifactError, match="no readable"):
        Artifact.open(folder)


@pytest.mark.parametrize("files", [[], {"one.txt": {}}, {"one.txt": 3}, 7])
def test_a_sealed_manifest_that_lists_no_files_is_refused(tmp_path, files):
    folder = made(tmp_path).path
    resealed(folder, files=files)
    with pytest.raises(ArtifactError, match="no readable"):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["../secret", "{}/secret", "below/../../secret"])
def test_files_outside_are_refused(tmp_path, name):
    (tmp_path / "secret").write_text("key")
    folder, name = made(tmp_path).path, name.format(tmp_path)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    resealed(folder, files={**listed, name: {"sha256": sha256(tmp_path / "secret"), "bytes": 3}})
    with pytest.raises(ArtifactError, match="is outside it"):
        Artifact.open(folder)


def test_links_are_refused_whatever_they_point_to(tmp_path):
    folder = made(tmp_path).path
    (folder / "below").rename(tmp_path / "elsewhere")
    (folder / "below").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="below: is a link"):
        Artifact.open(folder)
    folder = made(tmp_path, "b").path
    os.mkfifo(folder / "pipe")
    with pytest.raises(ArtifactError, match="pipe: is a link or no file"):
        Artifact.open(folder)


def test_a_file_that_was_put_there_later_is_refused(tmp_path):
    folder = made(tmp_path).path
    (folder / "below" / "head.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"head\.safetensors: was put there after"):
        Artifact.open(folder)


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from tunesmith.base import artifact

    folder, deadly = Path(sys.argv[1]), int(sys.argv[2])
    work = folder / "a.partial"
    work.mkdir()
    for number in range(4):
        (work / f"{number}.txt").write_text("x" * 1000)
    calls = 0

    def audit(event, arguments):
        global calls
        if event in ("open", "os.rename", "os.mkdir", "shutil.rmtree", "os.listdir", "os.scandir") and str(folder) in str(arguments[0]):
            calls += 1
            if calls == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    artifact.commit(work, folder / "a", {"stage": "s", "metrics": {}})
    print("whole")
    """
)


def test_killed_in_the_middle_of_a_commit_it_is_absent_or_whole(tmp_path):
    outcomes = []
    for deadly in (2, 6, 11, 14, 17, 19, 1000):
        folder = tmp_path / str(deadly)
        folder.mkdir()
        done = subprocess.run([sys.executable, "-c", KILLED, folder, str(deadly)], capture_output=True, text=True)
        assert done.returncode in (0, -9), done.stderr
        if (folder / "a").exists():
            assert len(Artifact.open(folder / "a").manifest["files"]) == 4
            outcomes.append("whole")
        else:
            assert len(list((folder / "a.partial").glob("*.txt"))) == 4
            outcomes.append("absent")
    assert outcomes[0] == "absent"
    assert outcomes[-1] == "whole"


def test_what_a_killed_commit_left_does_not_get_into_the_next(tmp_path):
    work = tmp_path / "a.partial"
    work.mkdir()
    (work / "one.txt").write_text("content")
    (work / "manifest.json").write_text("{")
    (work / ".manifest.json.99.tmp").write_text("{")
    assert set(commit(work, tmp_path / "a", {"metrics": {}}).manifest["files"]) == {"one.txt"}
    Artifact.open(tmp_path / "a")


def test_a_proof_refuses_what_does_not_hold_and_is_written_all_the_same(tmp_path):
    proof = Proof()
    proof.claim("sky is blue", True, wavelength=470)
    proof.write(tmp_path / "proof.json")
    proof.claim("grass is red", False, wavelength=530)
    with pytest.raises(ProofError, match=r"'grass is red' does not hold \(wavelength 530\)"):
        proof.write(tmp_path / "proof.json")
    claims = json.loads((tmp_path / "proof.json").read_text())["claims"]
    assert [claim["holds"] for claim in claims] == [True, False]
