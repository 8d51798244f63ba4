"""The one function that turns messages into tokens, for training, evaluation and serving alike."""

import json
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np

from tunesmith.base import DataError

from .encode import INNER, Encoder
from .example import Example, Message, Row, Sequence
from .specials import Specials
from .template import file_of, template_of
from .template_process import TODAY

Ids = list[int]
Pieces = list[tuple[int | str, bool]]
"""What a conversation renders to, special tokens by their ids and the text between them, each with whether it is learnt."""
SAID = ("tool_calls", "reasoning_content", "thinking", "function_call")
"""What an assistant's message may hold beside its text."""
AT_ONCE = 2_000_000
"""Characters of messages that a template is given at once, a tenth of what it may make of them."""
IN_ALL = 40_000_000
"""Characters of messages that a template is given for one conversation, all its beginnings together: their number grows with its turns, and so does their length."""


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
        self._encoder, self._specials = Encoder(tokenizer), Specials(tokenizer)

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
        """Tokens after which the model is to answer `messages`: as in a row that goes on from there, or read as a whole where the template allows of no such row.

        Raises:
            DataError: the template cannot render it.
            ModelError: the template does not end.
        """
        messages, tools = tuple(messages), tuple(tools)
        try:
            pieces = self._conversation(messages, tools, open_ended=True)
        except DataError:  # also where only a beginning cannot be rendered
            pieces = self._conversation(messages, tools, open_ended=True, apart=False)
        tokens, _ = _laid(pieces, self._encoder({piece for piece, _ in pieces if isinstance(piece, str)}))
        found: Ids = tokens.tolist()
        return found

    def ignores_tools(
        self, messages: Iterable[Message], tools: Iterable[dict[str, Any]], open_ended: bool = True
    ) -> bool:
        """Whether the template renders `messages` as if there were no tools; DataError if it cannot render them."""
        asked = [(tuple(messages), open_ended)]
        return self.rendered(asked, tuple(tools)) == self.rendered(asked)

    def encode(self, text: str) -> Ids:
        """Tokens of plain text in which nothing is special."""
        found: Ids = np.frombuffer(self._encoder({text})[text], dtype=np.int32).tolist()
        return found

    def plain(self, text: str) -> Ids:
        """Tokens of plain text as a row of it begins, for the model to go on from."""
        return [*self.opening, *self.encode(text)]

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
        after = self._specials.pieces(rest.partition("b")[2])
        return next((piece for piece in after if isinstance(piece, int)), None)

    def _plain(self, text: str) -> Pieces:
        start: Pieces = [(token, False) for token in self.opening]
        return [*start, (text, True), (self.tokenizer.eos_token_id, True)]

    @cached_property
    def opening(self) -> Ids:
        """What this tokenizer begins every plain text with: its beginning-of-sequence token, or nothing."""
        first: Ids = self.tokenizer("a").input_ids[:1]
        return first if first == [self.tokenizer.bos_token_id] else []

    def _sequence(self, tokens: np.ndarray, learnt: list[tuple[int, int]], plain: bool) -> Sequence:
        mask = np.zeros(len(tokens), dtype=bool)
        for start, stop in [(0, len(tokens))] if plain else learnt:
            mask[start:stop] = True
        last = len(tokens) - int(mask[::-1].argmax())  # what follows the last learnt token teaches nothing
        mask[0] = False
        return Sequence(tokens[:last], mask[:last])

    def _conversation(
        self,
        messages: tuple[Message, ...],
        tools: tuple[dict[str, Any], ...],
        open_ended: bool,
        first: int = 0,
        apart: bool = True,
    ) -> Pieces:
        """Pieces of a rendered conversation, cut where an answer begins unless not `apart`; messages before `first` are never learnt."""
        written = json.dumps((messages, tools), ensure_ascii=False, default=str)
        guard = self._specials.guard(written)
        if guard:
            messages = tuple(self._specials.guarded(message, guard) for message in messages)
            tools = tuple(self._specials.guarded(tool, guard) for tool in tools)
        spoken_at = [number for number, message in enumerate(messages) if apart and message["role"] == "assistant"]
        cuts = [cut for at in spoken_at for cut in ((at, True), (at + 1, False))]
        if open_ended or cuts[-1:] != [(len(messages), False)]:
            cuts.append((len(messages), open_ended))
        parts = iter(self._parts(messages, tools, cuts, len(written)))
        found: Pieces = []
        everything = self.supervise == "all"
        for number in spoken_at:
            found += [(piece, everything) for piece in self._specials.pieces(next(parts), guard)]
            answer = self._specials.pieces(next(parts), guard)
            learnt = messages[number].get("weight", 1) and (everything or number >= first)
            spoken = (len(answer) if everything else self._spoken(answer)) if learnt else 0
            found += [(piece, place < spoken) for place, piece in enumerate(answer)]
        return self._begun(
            found + [(piece, everything) for part in parts for piece in self._specials.pieces(part, guard)]
        )

    def _parts(
        self, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...], cuts: list[tuple[int, bool]], size: int
    ) -> list[str]:
        """What each of a conversation's beginnings adds to the one before: of so many messages, left open or not. All are written in `size` characters."""
        if len(cuts) > 1 and len(cuts) * size > IN_ALL:
            raise DataError(
                f"a conversation of {size:,} characters is too long to be rendered turn by turn, {len(cuts)} times; split it"
            )
        some = max(1, AT_ONCE // size)
        texts: list[str] = []
        for start in range(0, len(cuts), some):
            begun = [(messages[:count], opened) for count, opened in cuts[start : start + some]]
            texts += self.rendered(begun, tools)
        if not all(after.startswith(before) for before, after in pairwise(texts)):
            raise DataError("the chat template does not render a conversation as a continuation of its beginning")
        return [after[len(before) :] for before, after in pairwise(["", *texts])]

    def _begun(self, pieces: Pieces) -> Pieces:
        """Pieces with those told apart that go on from what stands before them, for a tokenizer to which that makes a difference."""
        if not self._encoder.begins:
            return pieces
        own = 1 + bool(
            self.opening and not self.tokenizer.chat_template
        )  # what the tokenizer puts first begins no text
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
        start = self.tokenizer.bos_token if self.opening and messages else ""
        ends = {"assistant": self.tokenizer.eos_token}
        return start + "".join(f"{message['content']}{ends.get(message['role'], '')}\n" for message in messages)

    def _check_tools(self, example: Example) -> None:
        """Refuse tools that the template would drop in silence."""
        messages = (*example.prompt, *example.answers[0])
        if self.ignores_tools(messages, example.tools, open_ended=False):
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
