"""Models that objectives are compared by."""

import pytest


@pytest.fixture
def policy(build):
    """What learns."""
    return build("llama", seed=3, vocab_size=97)


@pytest.fixture
def start(build):
    """What it is held to: another model, so that no ratio is 1."""
    return build("llama", seed=4, vocab_size=97)
