import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spaced import SPACED, sentencepiece

from tunesmith.data.render import Renderer
from tunesmith.models.attention import plain
from tunesmith.models.generate import BATCH, generate, stream
from tunesmith.models.sampling import Completion, Sampling, Text, Writer

ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen3": {},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "gpt2": {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 128},
}
RECURRENT = {
    "mamba": {"state_size": 4},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1},
    "recurrent_gemma": {"lru_width": 16, "num_hidden_layers": 3},
}
PROMPTS = [[1, 40, 41, 42, 43, 44, 45], [1, 40, 41, 42, 50], [1, 40, 41, 42, 43, 44, 45], [60], [1, 40, 41]]
"""Of unequal length; with common beginnings, a repetition, and one that begins another."""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request, build):
    return build(request.param, spread=0.3, **ARCHITECTURES[request.param])


@pytest.fixture(scope="module")
def llama(build):
    return build("llama", spread=0.3)


@pytest.fixture(scope="module")
def writer(smollm_tokenizer):
    """Feeds chosen tokens through the sampler: (pieces, completion)."""
    renderer = Renderer(smollm_tokenizer)

    def feed(tokens, **settings):
        found, pieces = Completion(), []
        one = Writer(0, Sampling(**settings), renderer)
        for token in tokens:
            logits = torch.zeros(len(smollm_tokenizer))
            logits[token] = 100.0
            pieces.append(one.take(logits))
            found.add(pieces[-1])
            if found.finish:
                break
        return pieces, found

    return feed


@given(tokens=st.lists(st.integers(0, 49151), max_size=40), tail=st.text(max_size=20))
@example(tokens=[], tail="a \ufffd \U0001f469\u200d\U0001f692, \u0928\u092e")
@example(tokens=[0, 1, 2, 0], tail="special ones between")
@settings(max_examples=200)
def test_text_that_grows_token_by_token_is_that_of_all_tokens(smollm_tokenizer, tokens, tail):
    """Bytes that are no character among them."""
    renderer = Renderer(smollm_tokenizer)
    tokens, text = [*tokens, *smollm_tokenizer.encode(tail)], Text(renderer)
    for count, token in enumerate(tokens, 1):
        assert text.add(token) == renderer.decode(tokens[:count])


@pytest.mark.parametrize("kind", SPACED)
def test_text_that_grows_keeps_the_spaces_of_sentencepiece(kind):
    """Which take one away from a text's beginning."""
    tokenizer = sentencepiece(kind, "")
    renderer, text = Renderer(tokenizer), Text(Renderer(tokenizer))
    tokens = [
        tokenizer.bos_token_id,
        *tokenizer.encode("yes  hi\n hi"),
        tokenizer.eos_token_id,
        *tokenizer.encode(" yes"),
    ]
    for count, token in enumerate(tokens, 1):
        assert text.add(token) == renderer.decode(tokens[:count])


def test_the_text_of_a_long_answer_costs_no_more_a_token(smollm_tokenizer):
    """Counted, not timed: tokens that are decoded for the last of a thousand."""
    renderer, decoded = Renderer(smollm_tokenizer), []

    class Counting:
        def decode(self, tokens):
            decoded.append(len(tokens))
            return renderer.decode(tokens)

    text = Text(Counting())
    for token in smollm_tokenizer.encode("The quick brown fox jumps over a dog. " * 100):
        text.add(token)
    assert len(decoded) > 1500
    assert max(decoded) <= 4


def collect(pieces, count):
    found = [Completion() for _ in range(count)]
    for piece in pieces:
        found[piece.index].add(piece)
    return found


def test_greedy_tokens_are_those_of_transformers(loaded):
    found = generate(loaded, PROMPTS, Sampling(max_tokens=12))
    with plain(loaded.model):
        for prompt, completion in zip(PROMPTS, found, strict=True):
            expected = loaded.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=sorted(Renderer(loaded.tokenizer).ends),
                pad_token_id=0,
            )[0, len(prompt) :]
            assert completion.tokens == expected.tolist()


def test_the_padded_way_is_the_same(loaded):
    sampling = [Sampling(max_tokens=4 + number, logprobs=True, top_logprobs=2) for number in range(len(PROMPTS))]
    fast = collect(stream(loaded, PROMPTS, sampling), len(PROMPTS))
    with plain(loaded.model):
        slow = collect(stream(dataclasses.replace(loaded, forest=False), PROMPTS, sampling), len(PROMPTS))
    for number, (one, other) in enumerate(zip(fast, slow, strict=True)):
        assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
        assert len(one.tokens) == 4 + number or one.finish == "stop"
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)
        assert [[token for token, _ in top] for top in one.top] == [[token for token, _ in top] for top in other.top]


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_model_generates_too(build, kind):
    """Whatever it calls its memory: the tokens are those of reading everything again each time."""
    loaded = build(kind, spread=0.3, **RECURRENT[kind])
    assert not loaded.forest
    found = generate(loaded, PROMPTS[:2], Sampling(max_tokens=5))
    for prompt, completion in zip(PROMPTS[:2], found, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for token in completion.tokens:
                assert token == int(loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
                ids.append(token)


def test_the_log_probability_is_the_models(llama):
    (found,) = generate(
        llama, [PROMPTS[0]], Sampling(max_tokens=5, temperature=1.5, seed=3, logprobs=True, top_logprobs=3)
    )
    with torch.no_grad(), plain(llama.model):
        logps = llama.model(input_ids=torch.tensor([PROMPTS[0] + found.tokens])).logits[0].log_softmax(-1)
    start = len(PROMPTS[0]) - 1
    for step, (token, logprob, top) in enumerate(zip(found.tokens, found.logprobs, found.top, strict=True)):
        assert logprob == pytest.approx(float(logps[start + step, token]), abs=1e-4)
        assert [word for word, _ in top] == logps[start + step].topk(3).indices.tolist()


def test_more_prompts_than_are_decoded_together(llama):
    prompts = [[1, 40 + number % 7, 50 + number] for number in range(BATCH + 3)]
    found = generate(llama, prompts, Sampling(max_tokens=3))
    for number in (0, BATCH - 1, BATCH, BATCH + 2):
        assert found[number].tokens == generate(llama, [prompts[number]], Sampling(max_tokens=3))[0].tokens


def test_closing_the_stream_early_leaves_the_model_usable(llama):
    pieces = stream(llama, PROMPTS, [Sampling(max_tokens=50)] * len(PROMPTS))
    next(pieces)
    pieces.close()
    assert torch.is_grad_enabled()
    assert len(generate(llama, PROMPTS, Sampling(max_tokens=2))) == len(PROMPTS)


class TestSampling:
    HOT = Sampling(max_tokens=12, temperature=1.0, seed=5)

    def test_a_seed_makes_it_reproducible_whoever_is_beside(self, llama):
        alone = generate(llama, [PROMPTS[1]], self.HOT)[0]
        beside = generate(llama, PROMPTS, self.HOT)[1]
        assert alone.tokens == beside.tokens
        other = generate(llama, [PROMPTS[1]], dataclasses.replace(self.HOT, seed=6))[0]
        assert alone.tokens != other.tokens

    def test_without_a_seed_it_varies(self, llama):
        hot = dataclasses.replace(self.HOT, seed=None)
        assert len({tuple(generate(llama, [PROMPTS[1]], hot)[0].tokens) for _ in range(4)}) > 1

    def test_a_small_nucleus_is_greedy(self, llama):
        narrow = dataclasses.replace(self.HOT, top_p=1e-6)
        assert [found.tokens for found in generate(llama, PROMPTS, narrow)] == [
            found.tokens for found in generate(llama, PROMPTS, Sampling(max_tokens=12))
        ]

    def test_frequencies_are_the_nucleus_probabilities(self, smollm_tokenizer):
        logits = torch.full((len(smollm_tokenizer),), -1e4)
        logits[100:104] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
        one = Writer(0, Sampling(max_tokens=10**6, temperature=1.0, top_p=0.75, seed=0), Renderer(smollm_tokenizer))
        drawn = torch.tensor([one._choose(logits) for _ in range(200)])
        assert set(drawn.tolist()) == {100, 101}
        assert float((drawn == 100).float().mean()) == pytest.approx(0.5 / 0.8, abs=0.1)


class TestWriter:
    def test_it_stops_before_a_stop_string_that_spans_tokens(self, writer, smollm_tokenizer):
        tokens = smollm_tokenizer("one two END three").input_ids
        pieces, found = writer(tokens, stop=(" END", "never"), max_tokens=99)
        assert (found.text, found.finish) == ("one two", "stop")
        assert "".join(piece.text for piece in pieces) == found.text

    def test_what_might_begin_a_stop_string_is_held_back_and_then_shown(self, writer, smollm_tokenizer):
        tokens = smollm_tokenizer("a < b").input_ids
        pieces, found = writer(tokens, stop=(" <|stop|>",), max_tokens=len(tokens))
        assert (found.text, found.finish) == ("a < b", "length")
        shown = "".join(piece.text for piece in pieces[:2])
        assert shown == "a"

    def test_an_end_token_ends_it_and_is_not_text(self, writer):
        _, found = writer([40, 2, 41], max_tokens=99)
        assert found.finish == "stop"
        assert found.tokens == [40, 2]
        assert "<|" not in found.text

    def test_max_tokens(self, writer):
        _, found = writer([40, 41, 42, 43], max_tokens=3)
        assert (found.tokens, found.finish) == ([40, 41, 42], "length")

    @staticmethod
    def cut(renderer, tokens, stops):
        """The text up to the stop string that is complete first, token by token."""
        for count in range(1, len(tokens) + 1):
            text = renderer.decode(tokens[:count])
            places = [text.find(stop) for stop in stops if stop in text]
            if places:
                return text[: min(places)]
        return renderer.decode(tokens)

    @settings(max_examples=60)
    @example(" aa", ["a", " aa"])
    @given(
        st.text(st.sampled_from("aé€😀👩🏽‍🚀ñ\u200dच ्\n"), max_size=12),
        st.lists(st.text(st.sampled_from("aé€😀 "), min_size=1, max_size=3), max_size=2),
    )
    def test_a_stream_is_the_text_and_never_breaks_a_character(self, writer, smollm_tokenizer, text, stops):
        tokens = [*Renderer(smollm_tokenizer).encode(text), 2]
        pieces, found = writer(tokens, stop=tuple(stops), max_tokens=999)
        assert found.text == self.cut(Renderer(smollm_tokenizer), tokens[:-1], stops)
        assert all("\ufffd" not in piece.text for piece in pieces)
        assert found.finish == "stop"
