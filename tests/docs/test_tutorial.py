"""Every command of the documentation that is marked to run is run, in order, in one folder."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.cli.app import app

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"<!-- (run|file: (?P<file>\S+)) -->\n```(?P<language>\w+)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE
)


def blocks(page: str) -> list[re.Match[str]]:
    return list(BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8")))


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one shell line; tunesmith and python in this process, which has torch loaded already."""
    program, *arguments = shlex.split(line)
    if program == "tunesmith":
        assert not app(arguments, standalone_mode=False), f"{line}: did not exit with 0"
    elif program == "python":
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        subprocess.run(line, shell=True, check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout to the commands."""
    made = tmp_path_factory.mktemp("tutorial")
    for name in ("docs", "examples"):
        (made / name).symlink_to(ROOT / name)
    return made


def execute(page: str) -> None:
    found = blocks(page)
    assert found, f"{page}: nothing is marked to run"
    for block in found:
        if block["file"]:
            Path(block["file"]).write_text(block["text"], encoding="utf-8")
        elif block["language"] == "python":
            exec(compile(block["text"], page, "exec"), {})
        else:
            with pytest.MonkeyPatch.context() as monkeypatch:
                for line in block["text"].splitlines():
                    run(line, monkeypatch)


def test_the_tutorial_and_then_the_python_page(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    execute("tutorial.md")
    printed = capsys.readouterr().out
    assert '⟦{"' in printed, "the preview shows no answer as learnt"
    assert "as given" in printed, "plan shows no line for the recipe itself"
    deployed = next((folder / "runs" / "rehearsal").glob("deploy-*"))
    assert (deployed / "model" / "model.safetensors").is_file()
    assert (folder / "runs" / "rehearsal" / "report.html").is_file()
    execute("python.md")
    assert "json_fields" in capsys.readouterr().out
