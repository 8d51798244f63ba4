"""The one function that turns messages into tokens, for training, evaluation and serving alike."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from tunesmith.base import DataError

from .encode import INNER, Encoder
from .example import Example, Message, Row, Sequence
from .template import file_of, template_of
from .template_process import TODAY

Ids = list[int]
Pieces = list[tuple[int | str, bool]]
"""What a conversation renders to, special tokens by their ids and the text between them, each with whether it is learnt."""
SAID = ("tool_calls", "reasoning_content", "thinking", "function_call")
"""What an assistant's message may hold beside its text."""


class Renderer:
    """Renders conversations by the model's own chat template and tokenises them.

    Two promises. Text that a person wrote never becomes a special token: only those that the template itself puts there do.
    What is served is what was trained: a conversation is tokenised in pieces that end where the assistant begins to speak, so a
    prompt has the same tokens whether an answer follows it (training) or is about to (serving).

    A tokenizer without a template gets the messages' contents as lines, each answer closed by the end token.
    """

    def __init__(
        self, tokenizer: Any, supervise: Literal["answers", "all"] = "answers", today: str | None = None
    ) -> None:
        """What a tokenizer's template makes of conversations; one that tells the date tells `today` (YYYY-MM-DD), or the clock's."""
        self.tokenizer, self.supervise = tokenizer, supervise
        self._day = {TODAY: today} if today else {}
        self._encoder = Encoder(tokenizer)

    def row(self, example: Example) -> Row:
        """Tokens of an example with the mask of what is learnt.

        Raises:
            DataError: the template cannot render it, ignores its tools, or nothing in it is to be learnt.
        """
        (found,) = self.rows([example])
        if isinstance(found, DataError):
            raise found
        return found

    def rows(self, examples: Iterable[Example]) -> list[Row | DataError]:
        """As `row` for each of many, encoded together; an example that cannot be used gives the error instead."""
        planned: list[tuple[Example, list[Pieces] | DataError]] = []
        for example in examples:
            try:
                planned.append((example, self._plan(example)))
            except DataError as error:
                planned.append((example, error))
        wanted = [pieces for _, plan in planned if not isinstance(plan, DataError) for pieces in plan]
        encoded = self._encoder({piece for pieces in wanted for piece, _ in pieces if isinstance(piece, str)})
        return [plan if isinstance(plan, DataError) else self._row(example, plan, encoded) for example, plan in planned]

    def _plan(self, example: Example) -> list[Pieces]:
        """The pieces of each of an example's sequences."""
        if example.text is not None:
            return [self._plain(example.text)]
        if example.tools:
            self._check_tools(example)
        self._check_said(example)
        first, tools = len(example.prompt), example.tools
        return [self._conversation((*example.prompt, *answer), tools, False, first) for answer in example.answers]

    def _row(self, example: Example, plan: list[Pieces], encoded: Mapping[str, bytes]) -> Row | DataError:
        sequences = tuple(self._sequence(*_laid(pieces, encoded), plain=example.text is not None) for pieces in plan)
        if not all(sequence.learn.any() for sequence in sequences):
            return DataError("nothing to learn: no assistant text")
        return Row(example.origin, sequences, dict(example.columns))

    def prompt(self, messages: Iterable[Message], tools: Iterable[dict[str, Any]] = ()) -> Ids:
        """Tokens after which the model is to answer `messages`."""
        pieces = self._conversation(tuple(messages), tuple(tools), open_ended=True)
        tokens, _ = _laid(pieces, self._encoder({piece for piece, _ in pieces if isinstance(piece, str)}))
        found: Ids = tokens.tolist()
        return found

    def encode(self, text: str) -> Ids:
        """Tokens of plain text in which nothing is special."""
        found: Ids = np.frombuffer(self._encoder({text})[text], dtype=np.int32).tolist()
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
        talk = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
        asked, told = self.rendered([(talk[:1], True), (talk, False)])
        rest = told[len(asked) :]
        after = self._pieces(rest.partition("b")[2])
        return next((piece for piece in after if isinstance(piece, int)), None)

    def _plain(self, text: str) -> Pieces:
        start: Pieces = [(self.tokenizer.bos_token_id, False)] if self._adds_bos else []
        return [*start, (text, True), (self.tokenizer.eos_token_id, True)]

    @cached_property
    def _adds_bos(self) -> bool:
        """Whether this tokenizer begins every text with its beginning-of-sequence token."""
        return bool(self.tokenizer("a").input_ids[:1] == [self.tokenizer.bos_token_id])

    def _sequence(self, tokens: np.ndarray, learnt: list[tuple[int, int]], plain: bool) -> Sequence:
        mask = np.zeros(len(tokens), dtype=bool)
        for start, stop in [(0, len(tokens))] if plain else learnt:
            mask[start:stop] = True
        last = len(tokens) - int(mask[::-1].argmax())  # what follows the last learnt token teaches nothing
        mask[0] = False
        return Sequence(tokens[:last], mask[:last])

    def _conversation(
        self, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...], open_ended: bool, first: int = 0
    ) -> Pieces:
        """Pieces of a rendered conversation; messages before `first` are never learnt."""
        guard = self._guard((messages, tools))
        if guard:
            messages = tuple(self._guarded(message, guard) for message in messages)
            tools = tuple(self._guarded(tool, guard) for tool in tools)
        spoken_at = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        wanted = [
            (part, opened) for at in spoken_at for part, opened in ((messages[:at], True), (messages[: at + 1], False))
        ]
        closed = not open_ended and spoken_at[-1:] == [len(messages) - 1]
        texts = iter(self.rendered(wanted if closed else [*wanted, (messages, open_ended)], tools))
        found: Pieces = []
        done, everything = "", self.supervise == "all"
        for number in spoken_at:
            before, after = next(texts), next(texts)
            if not (before.startswith(done) and after.startswith(before)):
                raise DataError("the chat template does not render a conversation as a continuation of its beginning")
            found += [(piece, everything) for piece in self._pieces(before[len(done) :], guard)]
            answer = self._pieces(after[len(before) :], guard)
            learnt = messages[number].get("weight", 1) and (everything or number >= first)
            spoken = (len(answer) if everything else self._spoken(answer)) if learnt else 0
            found += [(piece, place < spoken) for place, piece in enumerate(answer)]
            done = after
        rest = [piece for text in texts for piece in self._pieces(text[len(done) :], guard)]
        return self._begun(found + [(piece, everything) for piece in rest])

    def _begun(self, pieces: Pieces) -> Pieces:
        """Pieces with those told apart that go on from what stands before them, for a tokenizer to which that makes a difference."""
        if not self._encoder.begins:
            return pieces
        own = 1 + bool(
            self._adds_bos and not self.tokenizer.chat_template
        )  # what the tokenizer itself puts first begins no text
        before = [None, *(piece for piece, _ in pieces)]
        every = self._encoder.begins == "every"
        goes_on = [place >= own and not (every and isinstance(one, int)) for place, one in enumerate(before)]
        return [
            (INNER + piece if isinstance(piece, str) and inner else piece, learnt)
            for (piece, learnt), inner in zip(pieces, goes_on, strict=False)
        ]

    def _spoken(self, answer: list[int | str]) -> int:
        """How many pieces of a rendered answer the model has to say itself: up to and with the token that ends it."""
        closing = [place for place, piece in enumerate(answer) if piece in self.ends]
        return closing[-1] + 1 if closing else len(answer)

    def rendered(
        self, wanted: list[tuple[tuple[Message, ...], bool]], tools: tuple[dict[str, Any], ...] = ()
    ) -> list[str]:
        """Texts of conversations, of each whether it is left open for an answer; of no messages there is none.

        Raises:
            DataError: the template cannot render one.
            ModelError: the template does not end.
        """
        if not self.tokenizer.chat_template:
            return [self._without_template(messages) for messages, _ in wanted]
        common = {**self.tokenizer.special_tokens_map, "tools": list(tools) or None, "documents": None, **self._day}
        calls = [
            {**common, "messages": messages, "add_generation_prompt": opened} for messages, opened in wanted if messages
        ]
        try:
            template = template_of(self.tokenizer.get_chat_template(tools=common["tools"]))
        except ValueError as error:  # it has several, and none for this
            raise DataError(f"the model's chat template cannot render it: {error}") from None
        texts = iter(template(calls, file_of(self.tokenizer)))
        return [next(texts) if messages else "" for messages, _ in wanted]

    def _without_template(self, messages: tuple[Message, ...]) -> str:
        """A line for each message; answers are closed by the end token, or nothing would teach the model to stop."""
        start = self.tokenizer.bos_token if self._adds_bos and messages else ""
        ends = {"assistant": self.tokenizer.eos_token}
        return start + "".join(f"{message['content']}{ends.get(message['role'], '')}\n" for message in messages)

    def _pieces(self, text: str, guard: str = "") -> list[int | str]:
        """Split rendered text at its special tokens, which are recognised where the template wrote them, nowhere else."""
        parts = self._special_pattern.split(text) if self._special else [text]
        return [self._special.get(part, part.replace(guard, "") if guard else part) for part in parts if part]

    @cached_property
    def _special(self) -> dict[str, int]:
        """Every added token that counts as special, or that the tokenizer names as one of its special ones, by its text."""
        named = set(self.tokenizer.all_special_tokens)
        added = self.tokenizer.added_tokens_decoder.items()
        return {token.content: number for number, token in added if token.special or token.content in named}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _guard(self, written: Any) -> str:
        """A character that is nowhere in `written`, to break up what looks like a special token in a person's text; none if nothing does."""
        text = json.dumps(written, ensure_ascii=False, default=str)
        if self._special_in_json is not None and not self._special_in_json.search(text):
            return ""
        return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)

    @cached_property
    def _special_in_json(self) -> re.Pattern[str] | None:
        """Finds a special token in a text that JSON has escaped; None if there are none, or escaping would hide one."""
        hidden = any(json.dumps(text, ensure_ascii=False) != f'"{text}"' for text in self._special)
        return None if hidden or not self._special else self._special_pattern

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
        if self.rendered([(messages, False)], example.tools) == self.rendered([(messages, False)]):
            raise DataError(
                "the model's chat template ignores tools; leave them out, or describe them in the system message"
            )

    def _check_said(self, example: Example) -> None:
        """Refuse what the assistant says beside its text, if the template would drop it in silence: calls anywhere, and reasoning before the last answer."""
        for answer in example.answers:
            whole = (*example.prompt, *answer)
            last = [message for message in answer if message["role"] == "assistant"][-1:]
            for name in SAID:
                if any(message.get(name) for message in (whole if name == "tool_calls" else last)) and not self._shows(name, whole, example.tools):  # fmt: skip
                    raise DataError(
                        f"the model's chat template ignores {name}: it would not be learnt; write it into the content, leave it out, or take another model"
                    )

    def _shows(self, name: str, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> bool:
        """Whether a field of messages makes a difference to what they are rendered to."""
        bare = tuple({key: part for key, part in message.items() if key != name} for message in messages)
        whole = self.rendered([(messages, False)], tools)
        try:
            return self.rendered([(bare, False)], tools) != whole
        except DataError:  # it insists on what was left out
            return True


def _laid(pieces: Pieces, encoded: Mapping[str, bytes]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Tokens of pieces (int32), and from where to where they are learnt."""
    parts = [piece.to_bytes(4, sys.byteorder) if isinstance(piece, int) else encoded[piece] for piece, _ in pieces]
    ends = list(accumulate(len(part) // 4 for part in parts))
    learnt = [(end - len(part) // 4, end) for part, end, (_, learns) in zip(parts, ends, pieces, strict=True) if learns]
    return np.frombuffer(b"".join(parts), dtype=np.int32), learnt
