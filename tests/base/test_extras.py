"""What is missing is named with the command that brings it from where tunesmith itself came from."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from tunesmith.base import MachineError
from tunesmith.base.extras import extra, install

FOLDER = "file:///a%20b/tunesmith"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lets tunesmith be installed as a `direct_url.json` says, or without one."""

    def note(noted: dict | None) -> None:
        about = tmp_path / "tunesmith-0.1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tunesmith\nVersion: 0.1.0\n")
        if noted is not None:
            (about / "direct_url.json").write_text(json.dumps(noted))
        monkeypatch.syspath_prepend(tmp_path)

    return note


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        ({"url": FOLDER, "dir_info": {"editable": True}}, ["--editable", "/a b/tunesmith[search]"]),
        ({"url": FOLDER, "dir_info": {}}, ["/a b/tunesmith[search]"]),
        ({"url": "https://a.test/tunesmith.whl", "archive_info": {}}, ["tunesmith[search]"]),
        (None, ["tunesmith[search]"]),
    ],
)
def test_an_extra_comes_from_where_tunesmith_does(installed, noted, words):
    installed(noted)
    assert shlex.split(install("search")) == ["pip", "install", *words]
    with pytest.raises(MachineError) as raised:
        extra("no_such_package.part", "search", "search")
    assert str(raised.value) == f"search: the package 'no_such_package' is not installed; run: {install('search')}"


def test_tunesmith_itself_can_be_installed_anew(installed):
    installed({"url": FOLDER, "dir_info": {"editable": True}})
    words = ["pip", "install", "--force-reinstall", "--no-deps", "--editable", "/a b/tunesmith"]
    assert shlex.split(install("", "--force-reinstall", "--no-deps")) == words


def test_source_that_is_not_installed_names_the_package(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert install("data") == "pip install 'tunesmith[data]'"
