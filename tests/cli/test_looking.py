"""Commands that look at what is there: damaged stages, counts of rows, and folders that look like settings."""

import json

from tunesmith.base import Run, Spec, Stage
from tunesmith.base.files import write_atomic


class Nothing(Spec):
    """No settings."""


def test_a_stage_whose_manifest_is_damaged_is_shown_as_such(tunesmith, tmp_path):
    run = Run(tmp_path / "r")
    run.path.mkdir()
    stages = [Stage(name, 1, lambda spec, out: write_atomic(out / "a.txt", "a")) for name in ("prepare", "initialise")]
    damaged, _ = [run.once(stage, Nothing()) for stage in stages]
    for content in (b"{", b"\xff", b"[]"):
        (damaged / "manifest.json").write_bytes(content)
        code, told, error = tunesmith("show", "r")
        assert (code, [line.split()[1] for line in told.splitlines() if "-" in line]) == (0, ["damaged", "done"]), error
        code, told, _ = tunesmith("show", "r", "--json")
        assert code == 0
        assert {name: stage["state"] for name, stage in json.loads(told)["stages"].items()} == {"prepare": "damaged", "initialise": "done"}  # fmt: skip


def test_fewer_than_one_row_cannot_be_looked_at(tunesmith):
    code, _, error = tunesmith("data", "preview", "task.yaml", "--rows", "-1")
    assert code == 2
    assert "--rows" in error


def test_a_run_whose_folder_looks_like_a_setting_can_be_merged(tunesmith, tmp_path):
    for name in ("lr=0.1", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    code, _, error = tunesmith("merge", "runs/lr=0.1", "runs/b", "--out", "runs/both")
    assert code == 2
    assert f"{tmp_path / 'runs' / 'lr=0.1'}" in error
