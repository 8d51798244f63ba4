"""Tokens word by word are the tokens of the whole text, with every tokenizer of which that is relied on."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spaced import SPACED, sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tunesmith.data import encode
from tunesmith.data.encode import ENDING_WORDS, Encoder
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer

CORPUS = [
    "it's the 12 cats' milk, isn't it? don't say so",
    "Ünïcödé naïve  two spaces\n\nand lines \t tab",
    "x = foo(bar); # 3.14",
] * 9
TEXTS = st.lists(
    st.sampled_from(
        ["the cat", " ", "it's", "ß", "12", "don't say", "\n", "a b", "<|im_end|>", "e\u0301 x", ".", "X y", "'s s"]
    )
).map("".join)


def split_on(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def trained(pre_tokenizer: Any, normalizer: Any = None) -> Any:
    """A small tokenizer with merges of its own."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return SimpleNamespace(backend_tokenizer=backend)


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
WORDWISE = {
    "gpt-2": trained(GPT2),
    "digits": trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])),
    "llama-3": trained(split_on(ENDING_WORDS[0])),
    "qwen": trained(split_on(ENDING_WORDS[1]), normalizers.NFC()),
}


def check(tokenizer: Any, texts: list[str]) -> None:
    encoder = Encoder(tokenizer)
    assert encoder.by_words
    backend = tokenizer.backend_tokenizer
    for _ in range(2):  # the second time all words are known
        found = encoder(texts)
        for text in texts:
            backend.encode_special_tokens = True
            whole = backend.encode(text, add_special_tokens=False).ids
            backend.encode_special_tokens = False
            assert np.frombuffer(found[text], dtype=np.int32).tolist() == whole, text


@pytest.mark.parametrize("name", WORDWISE)
@given(st.lists(TEXTS | st.text(max_size=40), max_size=6))
def test_words_apart_give_the_tokens_of_the_whole(name: str, texts: list[str]) -> None:
    check(WORDWISE[name], [*CORPUS, *texts])


def test_the_bundled_model_is_tokenised_by_words(smollm_tokenizer: Any) -> None:
    general = Path(__file__).parents[2] / "src" / "tunesmith" / "stages" / "general.jsonl"
    rows = [json.loads(line)["messages"] for line in general.read_text(encoding="utf-8").splitlines()]
    check(smollm_tokenizer, [*CORPUS, *(message["content"] for messages in rows for message in messages)])


def test_words_are_forgotten_and_learnt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "MOST", 5)
    encoder = Encoder(WORDWISE["gpt-2"])
    texts = [f"one two {'x' * (number % 7)} three y{'z' * number}a and four" for number in range(40)]
    for text in texts * 2:
        whole = WORDWISE["gpt-2"].backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert np.frombuffer(encoder([text])[text], dtype=np.int32).tolist() == whole
        assert len(encoder._words) + len(encoder._before) < 25


def test_any_other_tokenizer_gets_whole_texts(smollm_tokenizer: Any) -> None:
    others = [
        trained(pre_tokenizers.Metaspace()),
        trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        trained(split_on(r"\w+ \w+")),
    ]
    others += [trained(GPT2, normalizers.Strip()), copy.deepcopy(smollm_tokenizer)]
    others[-1].backend_tokenizer.add_tokens([AddedToken("the cat", normalized=False)])
    for other in others:
        encoder = Encoder(other)
        assert not encoder.by_words
        for text in ("the cat's milk", "a b", " x  y"):
            whole = other.backend_tokenizer.encode(text, add_special_tokens=False).ids
            assert np.frombuffer(encoder([text])[text], dtype=np.int32).tolist() == whole


ZEPHYR = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = "<s>" + ZEPHYR


@pytest.mark.parametrize("template", [ZEPHYR, MARKED], ids=["begins with text", "begins with a token"])
@pytest.mark.parametrize("kind", SPACED)
def test_a_space_that_is_not_in_the_text_stands_where_the_tokenizer_puts_it(kind: str, template: str) -> None:
    tokenizer = sentencepiece(kind, template)
    renderer = Renderer(tokenizer)
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Yes hi"},
        {"role": "user", "content": "yes?"},
    ]
    for count in (1, 3):
        expected = tokenizer.apply_chat_template(talk[:count], add_generation_prompt=True, return_dict=False)
        assert renderer.prompt(talk[:count]) == expected
    row = renderer.row(Example("f:1", (talk[0],), ((talk[1],),)))
    (sequence,) = row.sequences
    learnt = sequence.tokens[sequence.learn].tolist()
    assert tokenizer.convert_ids_to_tokens(learnt) == ["Ye", "s", "▁hi", "</s>"]  # behind a line's end no space stands
    prompt = renderer.prompt(talk[:1])
    assert sequence.tokens[: len(prompt)].tolist() == prompt
    assert renderer.encode("hi") == tokenizer("hi", add_special_tokens=False).input_ids


@pytest.mark.parametrize("kind", SPACED)
def test_without_a_template_text_begins_as_the_tokenizer_begins_it(kind: str) -> None:
    tokenizer = sentencepiece(kind, "")
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    assert Renderer(tokenizer).prompt([{"role": "user", "content": "yes hi"}]) == tokenizer("yes hi\n").input_ids
