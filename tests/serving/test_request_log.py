"""The request log: what it keeps, what it never keeps, and for how long."""

import sqlite3
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.base import ArtifactError
from tunesmith.serving.log import (
    MARK,
    Record,
    Redactor,
    RequestLog,
    count_others,
    is_json,
    read_keeping,
    read_log,
    settle,
)
from tunesmith.serving.settings import RequestLogging


def keep(path, records, artifact=None, **settings):
    log = RequestLog(path, RequestLogging(**settings), artifact)
    for record in records:
        log.write(record)
    log.close()
    return list(read_log(path))


def record(**fields) -> Record:
    return Record(**{"route": "chat", "model": "tuned", "status": 200, "time": time.time(), **fields})


def test_records_come_back_as_they_were(tmp_path):
    written = [
        record(
            prompt="Grüße",
            answer='{"a": 1}',
            is_json=True,
            seconds=1.5,
            first_seconds=0.25,
            prompt_tokens=3,
            finish="stop",
        ),
        record(status=429, error="3 answers wait already"),
    ]
    assert keep(tmp_path / "log", written) == written


def test_reading_chooses_model_artifact_and_newest(tmp_path):
    now, path = time.time(), tmp_path / "log"
    keep(path, [record(model=name, time=now + number) for number, name in enumerate(["a", "b", "a", "a"])])
    assert [found.time for found in read_log(path, model="a", newest=2)] == [now + 2, now + 3]
    for served in ("deploy-1", "deploy-2", "deploy-1"):
        keep(path, [record(model="a", answer=served), record(model="b")], served)
    assert [found.answer for found in read_log(path, model="a", artifact="deploy-1")] == ["deploy-1"] * 2
    assert len(list(read_log(path, artifact="deploy-1", newest=3))) == 3
    assert count_others(path, "deploy-1", "a") == (1, 3)
    assert count_others(path, "deploy-1") == (2, 4)


def test_a_log_that_does_not_say_what_was_served_is_read_and_gone_on_with(tmp_path):
    path = tmp_path / "log"
    keep(path, [record(prompt="old")])
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("alter table requests drop column artifact")
    assert [(one.prompt, one.artifact) for one in read_log(path)] == [("old", None)]
    assert count_others(path, "deploy-1") == (0, 1)
    assert [one.artifact for one in keep(path, [record()], "deploy-1")] == [None, "deploy-1"]


def test_text_can_be_left_out(tmp_path):
    (found,) = keep(tmp_path / "log", [record(prompt="secret", answer="secret", prompt_characters=6)], text=False)
    assert (found.prompt, found.answer, found.prompt_characters) == (None, None, 6)
    assert b"secret" not in (tmp_path / "log").read_bytes()


@pytest.mark.parametrize(
    "secret",
    [
        "ann.lee+x@mail.example.org",
        "+49 171 2345678",
        "+15551234567",
        "(555) 123-4567",
        "(555)123-4567",
        "0171 2345678",
        "sk-proj-abcdefghijklmnop1234",
        "ghp_abcdefghijklmnopqrstuvwxyz012345",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBF-x\n=aB3-\n-----END PGP PRIVATE KEY BLOCK-----",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIEow\n-----END RSA PRIVATE KEY-----",
        "customer-12345",
    ],
)
def test_secrets_are_redacted(secret):
    redact = Redactor(RequestLogging(redact=(r"customer-\d+",)))
    assert redact(f"Say {secret} please") == f"Say {MARK} please"


def test_keys_of_the_environment_are_redacted(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0f3a9c77d2b14e5fa6")
    assert Redactor(RequestLogging())("use 0f3a9c77d2b14e5fa6 here") == f"use {MARK} here"


@pytest.mark.parametrize(
    "harmless",
    ["2026-11-21 10:18", "version 3.11.7-2", "192.168.0.10", "1 + 2 = 3", "pip install a==1.0", "id 12345678"],
)
def test_other_text_stays(harmless):
    assert Redactor(RequestLogging())(harmless) == harmless


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "1 " * 150_000,
        "+1" * 150_000,
        "a@" * 150_000,
        "eyJ" * 100_000,
        "-----BEGIN " * 20_000,
        (" +" + "1" * 80) * 3_000,
    ],
)
def test_redaction_takes_linear_time(text):
    start = time.process_time()
    Redactor(RequestLogging())(text)
    assert time.process_time() - start < 5


def test_old_and_surplus_records_go(tmp_path):
    path = tmp_path / "log"
    old = time.time() - 3 * 86_400
    keep(path, [record(time=old)] + [record(prompt=str(number)) for number in range(10)])
    assert [found.prompt for found in keep(path, [], rows=4, days=2)] == ["6", "7", "8", "9"]


def test_the_log_knows_how_it_treated_its_texts(tmp_path):
    keep(tmp_path / "log", [], redact=("x+",), text_limit=7)
    assert read_keeping(tmp_path / "log") == RequestLogging(redact=("x+",), text_limit=7)


def test_a_settled_file_holds_everything_though_the_server_still_writes(tmp_path):
    log = RequestLog(tmp_path / "log", RequestLogging())
    log.write(record(prompt="the newest"))
    while not list(read_log(tmp_path / "log")):
        time.sleep(0.01)
    settle(tmp_path / "log")
    (tmp_path / "copy").write_bytes((tmp_path / "log").read_bytes())
    assert [found.prompt for found in read_log(tmp_path / "copy")] == ["the newest"]
    log.close()


def test_a_missing_or_foreign_file_is_one_line(tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        list(read_log(tmp_path / "none"))
    (tmp_path / "text").write_text("not a database, but long enough to be read as one" * 100)
    with pytest.raises(ArtifactError, match="request log"):
        list(read_log(tmp_path / "text"))
    with pytest.raises(ArtifactError, match="request log"):
        RequestLog(tmp_path / "text", RequestLogging())


@given(st.text())
def test_any_text_can_be_judged_and_redacted(text):
    assert is_json(text) in (True, False)
    assert len(Redactor(RequestLogging(text_limit=5))(text)) <= 5


def test_old_requests_go_from_a_quiet_server_too(tmp_path, monkeypatch):
    log = RequestLog(tmp_path / "log", RequestLogging(days=1))
    log.write(record(time=time.time() - 2 * 86_400, prompt="old"))
    log._writer.submit(lambda: None).result()
    monkeypatch.setattr("tunesmith.serving.log.PRUNE_SECONDS", 0.0)
    log.write(record(prompt="new"))
    log.close()
    assert [one.prompt for one in read_log(tmp_path / "log")] == ["new"]


def test_what_was_deleted_is_gone_from_the_file_however_sqlite_was_built(tmp_path, monkeypatch):
    connect, path = sqlite3.connect, tmp_path / "log"

    def connected(*given, **named):
        file = connect(*given, **named)
        file.execute("pragma secure_delete = off")
        return file

    monkeypatch.setattr(sqlite3, "connect", connected)
    keep(path, [record(time=time.time() - 3 * 86_400, prompt="expired"), record(prompt="kept")])
    assert b"expired" in path.read_bytes()
    keep(path, [], days=2)
    assert (b"expired" in path.read_bytes(), b"kept" in path.read_bytes()) == (False, True)
