"""What the torture tests share: how many trials, on whom, and where they are counted."""

import copy
import runpy
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import Bench
from faults import Server, compiled
from subjects import Peer, Subject, Tunesmith, demonstrations, write_rows
from tally import Tally, environment, environment_of

from tunesmith.models.load import Loaded


@pytest.fixture
def many(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How many trials: the first number in a whole run (`make torture`), the second in the suite."""
    whole = request.config.getoption("--whole")
    return lambda most, few: most if whole else few


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `subject` runs on tunesmith and, where `--peer` names its Python, on the peer."""
    if "subject" in metafunc.fixturenames:
        peer = metafunc.config.getoption("--peer")
        subjects: list[Subject] = [Tunesmith(), *([Peer(Path(peer))] if peer else [])]
        metafunc.parametrize("subject", subjects, ids=lambda one: one.name)


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Peer:
    """The peer, where its trials have a test of their own."""
    python = request.config.getoption("--peer")
    return Peer(Path(python)) if python else pytest.skip("tries the peer alone, whose Python --peer names")


WENT_THROUGH = pytest.StashKey[bool]()
"""Whether a test came to its end."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Note whether a test came to its end, for its tally."""
    report = yield
    if report.when == "call":
        item.stash[WENT_THROUGH] = report.passed
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A whole run says what it did not try, whose results are those of an earlier one."""
    if config.getoption("--whole"):
        for report in terminalreporter.stats.get("skipped", ()):
            why = report.longrepr[2].removeprefix("Skipped: ")
            terminalreporter.line(f"not tried here: {report.nodeid.partition('::')[2]}: {why}")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Callable[..., Tally]]:
    """Makes the tally of a test id: `tally("R1", "killed runs go on", subject.name)`. A whole run keeps it if it came to its end; ours must hold in every trial, a peer's is only noted."""
    made: list[Tally] = []

    def make(name: str, title: str, subject: str = "tunesmith") -> Tally:
        ours = subject == "tunesmith"
        where = environment() if ours else environment_of(request.config.getoption("--peer"))
        made.append(Tally(name, title, subject, where))
        return made[-1]

    yield make
    for one in made:
        assert one.trials, f"{one.id}: nothing was tried"
        if request.config.getoption("--whole") and request.node.stash.get(WENT_THROUGH, False):
            one.keep()
        assert one.subject != "tunesmith" or not one.failed, "\n".join(one.failed)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two layers and a tokenizer of 1,000 pieces, which loads at once."""
    folder = tmp_path_factory.mktemp("toy")
    write_rows(folder / "rows.jsonl", demonstrations())
    made = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "toy_model.py"))
    made["main"](str(folder / "rows.jsonl"), str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that strikes at file operations."""
    made = compiled(tmp_path_factory.mktemp("faults"))
    if made is None:
        pytest.skip("no C compiler, which builds what injects faults; install gcc")
    return made


@pytest.fixture(scope="session")
def benches(tmp_path_factory: pytest.TempPathFactory, library: Path, toy: Path) -> Iterator[Callable[[Subject], Bench]]:
    """Makes the bench of a subject, once."""
    made: dict[str, Bench] = {}

    def make(subject: Subject) -> Bench:
        if subject.name not in made:
            root = tmp_path_factory.mktemp(subject.name)
            server = Server(subject, library, root / "place")
            made[subject.name] = Bench(server, root, root / "place", toy)
            made[subject.name].prepare()
        return made[subject.name]

    yield make
    for bench in made.values():
        bench.server.end()


@pytest.fixture
def bench(subject: Subject, benches: Callable[[Subject], Bench]) -> Bench:
    """Where crash trials of a subject are made."""
    return benches(subject)


@pytest.fixture(scope="session")
def tiny(build) -> Callable[..., Loaded]:
    """Makes the same random model of 97 tokens each time, without a tokenizer, by copying the first."""
    first: dict[str, Loaded] = {}

    def make(kind: str = "llama", **fields: Any) -> Loaded:
        if kind not in first:
            first[kind] = build(kind, seed=3, vocab_size=97, **fields)
        return replace(first[kind], model=copy.deepcopy(first[kind].model), tokenizer=None)

    return make
