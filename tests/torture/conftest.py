"""What the torture tests share: how many trials, on whom, and where they are counted."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from subjects import Peer, Subject, Tunesmith
from tally import Tally


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
