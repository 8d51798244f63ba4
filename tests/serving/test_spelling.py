"""Tokens are told to clients as they stand within a text, and their bytes also where they are a part of a character."""

import pytest
from spaced import SPACED, sentencepiece
from tokenizers import decoders

from tunesmith.data.render import Renderer
from tunesmith.models.generate import Piece
from tunesmith.serving.reply import Choice, Reply
from tunesmith.serving.spelling import Spelling

EURO = "\u20ac"


def told(route: str, renderer: Renderer, token: int, top: tuple[int, ...]):
    """The log-probabilities of an answer of one token."""
    piece = Piece(0, token, "x", -0.5, tuple((each, -0.5) for each in top), "length")
    return Reply(route, "tuned", renderer, 3, [Choice([piece])], True).whole["choices"][0]["logprobs"]


@pytest.fixture(scope="module")
def of_bytes():
    """A tokenizer that spells what is not in its vocabulary byte by byte."""
    tokenizer = sentencepiece("first", "")
    tokenizer.add_tokens([f"<0x{byte:02X}>" for byte in EURO.encode()])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    return Renderer(tokenizer)


@pytest.mark.parametrize("kind", SPACED)
def test_a_token_keeps_the_space_that_it_begins_with(kind):
    tokenizer = sentencepiece(kind, "")
    spaced, bare = tokenizer.convert_tokens_to_ids(["▁hi", "hi"])
    renderer = Renderer(tokenizer)
    assert told("completions", renderer, spaced, (spaced, bare))["top_logprobs"] == [{" hi": -0.5, "hi": -0.5}]
    (chat,) = told("chat", renderer, spaced, (bare,))["content"]
    assert (chat["token"], bytes(chat["bytes"])) == (" hi", b" hi")
    assert (chat["top_logprobs"][0]["token"], bytes(chat["top_logprobs"][0]["bytes"])) == ("hi", b"hi")


def test_parts_of_a_character_tell_their_bytes_by_themselves(smollm_tokenizer, of_bytes):
    tokens = of_bytes.tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in EURO.encode()])
    for renderer, parts in (
        (Renderer(smollm_tokenizer), Renderer(smollm_tokenizer).encode("\U00010348")),
        (of_bytes, tokens),
    ):
        assert len(parts) > 1
        spelling = Spelling(renderer)
        assert any("\ufffd" in spelling.text(part) for part in parts)
        found = b"".join(bytes(spelling.bytes(part)) for part in parts)
        assert found == renderer.decode(parts).encode()


def test_alternatives_that_are_parts_of_characters_are_told_apart(of_bytes):
    first, second, third = of_bytes.tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in EURO.encode()])
    found = told("completions", of_bytes, first, (first, second, third))
    assert found["tokens"] == ["bytes:\\xe2"]
    assert list(found["top_logprobs"][0]) == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
