"""Which variables of the environment hold secrets, and that none is printed by a process that crashes."""

import subprocess
import sys

import pytest

from tunesmith.base.secrets import MARK, from_environment

KEYS = {
    "WANDB_API_KEY": "0f3a9c77d2b14e5fa6",
    "AWS_SECRET_ACCESS_KEY": "/xT4kq2rZ9vB7mN1pL5wYc8dQe3fGh6jKs0tUa+i",
    "DB_PASS": "correct-horse-7",
    "ADMIN_PWD": "battery.staple.42",
    "CI_TOKEN_2": "abcd-1234-efgh-5678",
}
OTHERS = {
    "SSH_KEY": "/home/someone/.ssh/id_ed25519",
    "TLS_KEY": "./certificates/2026/server.key",
    "OLDPWD": "/srv/data/project-2026/run-0001",
    "KEYBOARD": "pc105-and-12345",
    "SHORT_KEY": "a1b2",
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_known_by_its_name(monkeypatch, name):
    monkeypatch.setenv(name, KEYS[name])
    assert KEYS[name] in from_environment()


@pytest.mark.parametrize("name", OTHERS)
def test_paths_and_other_values_are_none(monkeypatch, name):
    monkeypatch.setenv(name, OTHERS[name])
    assert OTHERS[name] not in from_environment()


def test_a_file_that_is_there_is_a_path_however_it_is_called(monkeypatch, tmp_path):
    path = tmp_path / "0123456789abcdefghijklmnop"
    path.touch()
    monkeypatch.setenv("SOME_KEY", str(path))
    assert str(path) not in from_environment()


@pytest.mark.parametrize("module", ["tunesmith.stages.search.worker", "tunesmith.stages.rendering"])
def test_a_process_of_its_own_that_crashes_prints_no_key(tmp_path, module):
    key = "hf_" + "a1" * 17
    command = [sys.executable, "-m", module, str(tmp_path / key), "1", "2024-02-29"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = process.stderr.read()  # before standard input is closed, which would end it
    assert process.returncode == 1
    assert "Traceback" in told
    assert MARK in told
    assert key not in told
