"""What the torture tests share: how many trials, on whom, and where they are counted."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from subjects import Peer, Subject, Tunesmith
from tally import Tally

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
def tally(request: pytest.FixtureRequest) -> Iterator[Callable[..., Tally]]:
    """Makes the tally of a test id: `tally("R1", "killed runs go on", subject.name)`. A whole run keeps it; ours must hold in every trial, a peer's is only noted."""
    made: list[Tally] = []

    def make(name: str, title: str, subject: str = "tunesmith") -> Tally:
        made.append(Tally(name, title, subject))
        return made[-1]

    yield make
    for one in made:
        assert one.trials, f"{one.id}: nothing was tried"
        if request.config.getoption("--whole"):
            one.keep()
        assert one.subject != "tunesmith" or not one.failed, "\n".join(one.failed)


@pytest.fixture(scope="session")
def tiny(build) -> Callable[..., Loaded]:
    """Makes the same random model of 97 tokens each time, without a tokenizer, by copying the first."""
    first: dict[str, Loaded] = {}

    def make(kind: str = "llama", **fields: Any) -> Loaded:
        if kind not in first:
            first[kind] = build(kind, seed=3, vocab_size=97, **fields)
        return replace(first[kind], model=copy.deepcopy(first[kind].model), tokenizer=None)

    return make
