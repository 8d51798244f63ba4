"""The one function that turns messages into tokens, for training, evaluation and serving alike."""

import json
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

import jinja2
import numpy as np

from tunesmith.base import DataError

from .example import Example, Message, Row, Sequence

Ids = list[int]


class Renderer:
    """Renders conversations by the model's own chat template and tokenises them.

    Two promises. Text that a person wrote never becomes a special token: only those that the template itself puts there do.
    What is served is what was trained: a conversation is tokenised in pieces that end where the assistant begins to speak, so a
    prompt has the same tokens whether an answer follows it (training) or is about to (serving).

    A tokenizer without a template gets the messages' contents as lines, each answer closed by the end token.
    """

    def __init__(self, tokenizer: Any, supervise: Literal["answers", "all"] = "answers") -> None:
        self.tokenizer = tokenizer
        self.supervise = supervise

    def row(self, example: Example) -> Row:
        """Tokens of an example with the mask of what is learnt.

        Raises:
            DataError: the template cannot render it, ignores its tools, or nothing in it is to be learnt.
        """
        if example.text is not None:
            sequences: tuple[Sequence, ...] = (self._plain(example.text),)
        else:
            if example.tools:
                self._check_tools(example)
            sequences = tuple(self._sequence(example.prompt, answer, example.tools) for answer in example.answers)
        if not all(sequence.learn.any() for sequence in sequences):
            raise DataError("nothing to learn: no assistant text")
        return Row(example.origin, sequences, dict(example.columns))

    def prompt(self, messages: Iterable[Message], tools: Iterable[dict[str, Any]] = ()) -> Ids:
        """Tokens after which the model is to answer `messages`."""
        ids, _ = self._conversation(tuple(messages), tuple(tools), open_ended=True)
        return ids

    def encode(self, text: str) -> Ids:
        """Tokens of plain text in which nothing is special."""
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        try:
            found: Ids = backend.encode(text, add_special_tokens=False).ids
        finally:
            backend.encode_special_tokens = False
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Text of tokens, special ones left out."""
        found: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer: the end of sequence, and what the template closes an assistant turn with."""
        found = {self.tokenizer.eos_token_id} if self.tokenizer.eos_token_id is not None else set()
        if self.tokenizer.chat_template:
            closing = self._closing()
            if closing is not None:
                found.add(closing)
        return frozenset(found)

    def _closing(self) -> int | None:
        """The special token that the template puts right behind an assistant's text, if it puts one."""
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        rest = self._render(tuple(talk), (), False)[len(self._render(tuple(talk[:1]), (), True)) :]
        after = self._pieces(rest.partition("b")[2])
        return next((piece for piece in after if isinstance(piece, int)), None)

    def _plain(self, text: str) -> Sequence:
        start = [self.tokenizer.bos_token_id] if self._adds_bos else []
        ids = [*start, *self.encode(text), self.tokenizer.eos_token_id]
        learn = np.ones(len(ids), dtype=bool)
        learn[0] = False
        return Sequence(np.array(ids, dtype=np.int32), learn)

    @cached_property
    def _adds_bos(self) -> bool:
        """Whether this tokenizer begins every text with its beginning-of-sequence token."""
        return bool(self.tokenizer("a").input_ids[:1] == [self.tokenizer.bos_token_id])

    def _sequence(
        self, prompt: tuple[Message, ...], answer: tuple[Message, ...], tools: tuple[dict[str, Any], ...]
    ) -> Sequence:
        ids, learn = self._conversation((*prompt, *answer), tools, open_ended=False, first=len(prompt))
        mask = np.array(learn, dtype=bool)
        if self.supervise == "all":
            mask[:] = True
        last = (
            int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else len(ids)
        )  # what follows the last learnt token teaches nothing
        mask[0] = False
        return Sequence(np.array(ids[:last], dtype=np.int32), mask[:last])

    def _conversation(
        self, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...], open_ended: bool, first: int = 0
    ) -> tuple[Ids, list[bool]]:
        """Tokens and learn mask; messages before `first` are never learnt."""
        guard = self._guard((messages, tools))
        messages = tuple(self._guarded(message, guard) for message in messages)
        tools = tuple(self._guarded(tool, guard) for tool in tools)
        ids: Ids = []
        learn: list[bool] = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], tools, True)
            after = self._render(messages[: number + 1], tools, False)
            if not (before.startswith(done) and after.startswith(before)):
                raise DataError("the chat template does not render a conversation as a continuation of its beginning")
            context = self._ids(before[len(done) :], guard)
            answer = self._ids(after[len(before) :], guard)
            spoken = self._spoken(answer) if number >= first else 0
            ids += context + answer
            learn += [False] * len(context) + [True] * spoken + [False] * (len(answer) - spoken)
            done = after
        rest = self._ids(self._render(messages, tools, open_ended)[len(done) :], guard)
        return ids + rest, learn + [False] * len(rest)

    def _spoken(self, answer: Ids) -> int:
        """How many tokens of a rendered answer the model has to say itself: up to and with the token that ends it."""
        closing = [place for place, token in enumerate(answer) if token in self.ends]
        return closing[-1] + 1 if closing else len(answer)

    def _render(self, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...], open_ended: bool) -> str:
        if not messages:
            return ""
        if not self.tokenizer.chat_template:
            return self._without_template(messages)
        try:
            found: str = self.tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, add_generation_prompt=open_ended, tokenize=False
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise DataError(f"the model's chat template cannot render it: {error}") from None
        return found

    def _without_template(self, messages: tuple[Message, ...]) -> str:
        """A line for each message; answers are closed by the end token, or nothing would teach the model to stop."""
        start = self.tokenizer.bos_token if self._adds_bos else ""
        ends = {"assistant": self.tokenizer.eos_token}
        return start + "".join(f"{message['content']}{ends.get(message['role'], '')}\n" for message in messages)

    def _ids(self, text: str, guard: str) -> Ids:
        """Tokens of rendered text; special tokens are recognised where the template wrote them, nowhere else."""
        ids: Ids = []
        for piece in self._pieces(text):
            ids += [piece] if isinstance(piece, int) else self.encode(piece.replace(guard, ""))
        return ids

    def _pieces(self, text: str) -> list[int | str]:
        """Split rendered text at its special tokens."""
        parts = self._special_pattern.split(text) if self._special else [text]
        return [self._special.get(part, part) for part in parts if part]

    @cached_property
    def _special(self) -> dict[str, int]:
        """Every added token that counts as special, by its text."""
        return {token.content: number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _guard(self, written: Any) -> str:
        """A character that is nowhere in `written`; it breaks up what looks like a special token in a person's text."""
        text = json.dumps(written, ensure_ascii=False, default=str)
        return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)

    def _guarded(self, value: Any, guard: str) -> Any:
        """`value` with the guard inside everything in its strings that a special token could be read from."""
        if isinstance(value, str):
            return (
                self._special_pattern.sub(lambda match: match[0][0] + guard + match[0][1:], value)
                if self._special
                else value
            )
        if isinstance(value, dict):
            return {self._guarded(name, guard): self._guarded(part, guard) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._guarded(part, guard) for part in value]
        return value

    def _check_tools(self, example: Example) -> None:
        """Refuse tools that the template would drop in silence."""
        messages = (*example.prompt, *example.answers[0])
        if self._render(messages, example.tools, False) == self._render(messages, (), False):
            raise DataError(
                "the model's chat template ignores tools; leave them out, or describe them in the system message"
            )
