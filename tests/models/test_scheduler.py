"""Continuous batching: whoever comes and goes, an answer is the one it would be alone."""

import contextlib
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.kernels.decode import up
from tunesmith.models.attention import plain
from tunesmith.models.decoding import FusedDecoding
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.pages import PAGE, Pages
from tunesmith.models.sampling import Completion
from tunesmith.models.scheduler import Scheduler, cache_bytes

WAYS = ("fused", "generic", "padded")
SYSTEM = list(range(3, 80))
"""Longer than a page."""
PROMPTS = [
    [*SYSTEM, 100, 101],
    [*SYSTEM, 100, 102, 103],
    list(range(200, 340)),
    [*SYSTEM, 100, 101],
    [*SYSTEM[:20], 7],
    [9],
]


@pytest.fixture(scope="module", params=WAYS)
def loaded(request, build):
    made = build("llama", spread=0.3)
    made.fuse, made.forest = request.param == "fused", request.param != "padded"
    with contextlib.nullcontext() if made.forest else plain(made.model):
        yield made


@pytest.fixture(scope="module")
def fused(build):
    return build("llama", spread=0.3)


def run(scheduler, arrivals):
    """Completions of prompts that each come before some step; and of each step, who got a token."""
    found, seen, step = {}, [], 0
    while arrivals or not scheduler.idle:
        for number, prompt, sampling in arrivals.pop(step, ()):
            scheduler.add(number, prompt, sampling)
            found[number] = Completion()
        pieces = scheduler.step()
        for piece in pieces:
            found[piece.index].add(piece)
        seen.append([piece.index for piece in pieces])
        step += 1
    return found, seen


def staggered(sampling):
    """Every prompt a few steps after the one before."""
    return {3 * number: [(number, prompt, sampling(number))] for number, prompt in enumerate(PROMPTS)}


@pytest.mark.parametrize("room", [8 * PAGE, 40 * PAGE])
def test_staggered_arrivals_answer_as_each_alone(loaded, room):
    """Greedily, and drawn with a seed; with room for all, and with so little that some wait and kept pages are given up."""
    hot = Sampling(max_tokens=10, temperature=1.0)
    sampling = lambda number: dataclasses.replace(hot, seed=number) if number % 2 else Sampling(max_tokens=12)  # noqa: E731
    found, _ = run(Scheduler(loaded, batch=3, chunk=50, room=room, keep=True), staggered(sampling))
    for number, prompt in enumerate(PROMPTS):
        assert found[number].tokens == generate(loaded, [prompt], sampling(number))[0].tokens


def test_what_is_kept_is_not_read_again(fused):
    scheduler = Scheduler(fused, batch=4, chunk=512, room=40 * PAGE, keep=True)
    first, _ = run(scheduler, {0: [(0, PROMPTS[0], Sampling(max_tokens=5))]})
    assert scheduler.reused == 0
    again, _ = run(scheduler, {0: [(1, PROMPTS[0], Sampling(max_tokens=5))]})
    assert scheduler.reused == len(PROMPTS[0]) - 1
    assert again[1].tokens == first[0].tokens
    talk = [*PROMPTS[0], *first[0].tokens, 50, 51]  # a conversation goes on
    run(scheduler, {0: [(2, talk, Sampling(max_tokens=1))]})
    assert scheduler.reused == len(PROMPTS[0]) - 1 + len(PROMPTS[0]) + 4


def test_answers_to_one_prompt_branch_from_one_reading(fused, monkeypatch):
    rows = []
    real = FusedDecoding.step
    monkeypatch.setattr(
        FusedDecoding,
        "step",
        lambda self, feeds: rows.append([len(feed.tokens) for feed in feeds]) or real(self, feeds),
    )
    samplings = [Sampling(max_tokens=3, temperature=1.0, seed=number) for number in range(5)]
    found = generate(fused, [PROMPTS[2]] * 5, samplings)
    assert rows == [[140], [1] * 5, [1] * 5, [1] * 4]
    assert len({tuple(one.tokens) for one in found}) > 1


def test_a_long_prompt_holds_nobody_up(fused):
    """While it is read, every answer under way gets a token a step, and no step reads more than its share."""
    scheduler = Scheduler(fused, batch=4, chunk=32, room=40 * PAGE, keep=True)
    reads = []
    real = scheduler.decoding.step
    scheduler.decoding.step = lambda feeds: reads.append(sum(len(feed.tokens) for feed in feeds)) or real(feeds)
    long = list(range(300, 500))
    arrivals = {
        0: [(0, [5], Sampling(max_tokens=30))],
        4: [(1, long, Sampling(max_tokens=2)), (2, [8], Sampling(max_tokens=2))],
    }
    _, seen = run(scheduler, arrivals)
    assert all(0 in who for who in seen[:30])
    assert max(reads) <= 32 + 2
    assert min(number for number, who in enumerate(seen) if 1 in who) == 4 + -(-len(long) // 32) - 1


def test_a_cancelled_answer_frees_its_place_and_its_pages(fused):
    scheduler = Scheduler(fused, batch=1, chunk=64, room=4 * PAGE, keep=False)
    scheduler.add(0, PROMPTS[2], Sampling(max_tokens=100))
    scheduler.add(1, [5], Sampling(max_tokens=2))
    for _ in range(4):
        scheduler.step()
    assert [one.number for one in scheduler.running] == [0]
    scheduler.cancel(0)
    assert scheduler.step()[0].index == 1
    scheduler.step()
    assert scheduler.idle
    assert scheduler.pages.available == 4
    scheduler.cancel(1)  # harmless


def test_what_a_cache_takes_is_known_before_it_is_there(loaded):
    """Of a token: keys and values of each layer's groups, in the dtype that they are kept in; the padded way keeps none ahead."""
    config, scheduler = loaded.model.config, Scheduler(loaded, batch=1, chunk=50, room=40 * PAGE, keep=True)
    run(scheduler, {0: [(0, [5, 6], Sampling(max_tokens=2))]})
    found = cache_bytes(loaded, 40 * PAGE - 1)
    assert found == scheduler.decoding.size
    token = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * (up(config.head_dim) if loaded.fuse else config.head_dim)
        * 4
    )
    assert found == (40 * PAGE * token if loaded.forest else 0)


def test_what_can_never_fit_is_refused(fused):
    scheduler = Scheduler(fused, batch=1, chunk=64, room=2 * PAGE, keep=True)
    with pytest.raises(ValueError, match="does not fit"):
        scheduler.add(0, [5] * 100, Sampling(max_tokens=29))
    with pytest.raises(ValueError, match="does not fit"):
        scheduler.add(0, [], Sampling())


class TestPages:
    @staticmethod
    def write(pages, content, prompt, tokens):
        """Answer a prompt with some tokens; what each page holds is checked on the way."""
        held = pages.open(prompt, len(prompt) + len(tokens))
        if held is None:
            return None
        sequence = [*prompt, *tokens]
        assert held.length < len(prompt)
        for place, token in enumerate(sequence[held.length :], held.length):
            pages.extend(held, 1)
            content[held.numbers[-1]][place % PAGE] = token
            pages.commit(held, [token])
        kept = np.concatenate([content[number] for number in held.numbers])[: len(sequence)]
        assert kept.tolist() == sequence
        return held

    def test_the_prefix_left_first_goes_first(self):
        content = np.zeros((4, PAGE), int)
        pages = Pages(4, lambda source, target: content.__setitem__(target, content[source]))
        prompts = [[number] * (PAGE + 1) for number in (1, 2)]
        for prompt in (*prompts, prompts[0]):  # the first is used again
            pages.close(self.write(pages, content, prompt, []))
        pages.close(self.write(pages, content, [3], []))
        assert [pages.match(prompt)[2] for prompt in prompts] == [PAGE + 1, PAGE]  # of a prefix its end first
        pages.close(self.write(pages, content, [4], []))
        assert [pages.match(prompt)[2] for prompt in prompts] == [PAGE + 1, 0]

    @settings(max_examples=40)
    @given(
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 150), st.integers(0, 90), st.booleans()), max_size=12),
        st.booleans(),
    )
    def test_a_page_holds_what_the_trie_says(self, asked, keep):
        """Prompts of few different tokens, some of which stay open while others come."""
        content = np.zeros((9, PAGE), int)
        pages = Pages(9, lambda source, target: content.__setitem__(target, content[source]), keep)
        opened = []
        for token, length, more, stays in asked:
            held = self.write(pages, content, [token] * length + [0], [token] * more)
            if held is None:
                assert opened
                pages.close(opened.pop(0))
            elif stays:
                opened.append(held)
            else:
                pages.close(held)
        for held in opened:
            pages.close(held)
        assert pages.available == 9
        assert (pages.in_use, pages.promised) == (0, 0)
