"""One request from its body to its last token, and the records it leaves in the log."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.models.generate import Sampling

from .engine import Engine, Ids, Job, Served, closed
from .log import CLIENT_LEFT, Record, is_json
from .reply import Choice, Reply
from .request_error import RequestError
from .schema import Asked, ChatAsked, CompletionAsked, read


class Answer:
    """The course of one request: `prepare`, then either `whole` or `events`; `records` at the end, however it ended.

    Args:
        engine: where it is answered.
        kind: which endpoint's request `body` is.
        body: the bytes the client sent.
        ended: called once with the answer when all is over.
    """

    def __init__(self, engine: Engine, kind: type[Asked], body: bytes, ended: Callable[["Answer"], None]) -> None:
        self.engine = engine
        self.kind = kind
        self.body = body
        self.ended = ended
        self.time = time.time()
        self.start = time.monotonic()
        self.first: float | None = None
        self.status = 500
        self.error: str | None = None
        self.left = False
        self.asked: Asked | None = None
        self.texts: list[str] = []
        self.prompts: list[Ids] = []
        self.reply: Reply
        self.job: Job

    @property
    def streams(self) -> bool:
        """Whether the client wants pieces."""
        return bool(self.asked and self.asked.stream)

    async def prepare(self) -> None:
        """Read, check, tokenise and queue the request; raises RequestError for whatever is wrong with it."""
        asked = self.asked = read(self.kind, self.body)
        served = self.engine.served(asked.model)
        choices = asked.n or 1
        self._check_count(choices * asked.count)
        if isinstance(asked, ChatAsked):
            await self._read_chat(asked, served)
        elif isinstance(asked, CompletionAsked):
            await self._read_completion(asked, served)
        rooms = [served.check(prompt, asked.most_tokens, self.engine.settings) for prompt in self.prompts]
        samplings = [self._sampling(asked, room, number) for room in rooms for number in range(choices)]
        repeated = [prompt for prompt in self.prompts for _ in range(choices)]
        self.reply = Reply(
            "chat" if isinstance(asked, ChatAsked) else "completions",
            asked.model,
            served.renderer,
            sum(len(prompt) for prompt in self.prompts),
            [Choice() for _ in repeated],
            samplings[0].logprobs,
            asked.with_usage,
            frozenset(tool["function"]["name"] for tool in asked.rendered_tools),
            isinstance(asked, ChatAsked) and asked.parallel_tool_calls is False,
        )
        self.job = self.engine.submit(asked.model, repeated, samplings)

    async def whole(self) -> dict[str, Any]:
        """The complete answer in one object."""
        with self._course():
            async for piece in self.job:
                self._mark_first()
                self.reply.choices[piece.index].pieces.append(piece)
        return self.reply.whole

    async def events(self) -> AsyncIterator[str]:
        """The answer as the data of server-sent events; a failure on the way is the last of them."""
        try:
            with self._course():
                for chunk in self.reply.opening():
                    yield json.dumps(chunk)
                async for piece in self.job:
                    self._mark_first()
                    for chunk in self.reply.chunk(piece):
                        yield json.dumps(chunk)
                for chunk in self.reply.closing():
                    yield json.dumps(chunk)
            yield "[DONE]"
        except RequestError as refusal:
            self.stopped(refusal)
            yield json.dumps(refusal.envelope)
        finally:
            self.ended(self)

    def stopped(self, reason: BaseException) -> None:
        """Note why the request was not answered to its end: it was refused, or cancelled, since the client left or else the server is told to end."""
        if not isinstance(reason, RequestError):
            reason = RequestError(CLIENT_LEFT, "the client left") if self.left else closed()
        self.status, self.error = reason.status, reason.message

    async def leave(self, _: object = None) -> None:
        """Note that the client does not wait for the rest of a stream."""
        self.left = True

    def records(self) -> list[Record]:
        """What the log is to keep: one record for each prompt, or one for a request that did not get that far."""
        common: dict[str, Any] = {
            "route": "chat" if self.kind is ChatAsked else "completions",
            "model": self.asked.model if self.asked else "",
            "status": self.status,
            "time": self.time,
            "seconds": time.monotonic() - self.start,
            "first_seconds": self.first,
            "error": self.error,
        }
        if self.asked is None or not self.prompts:
            return [Record(**common)]
        count = self.asked.n or 1
        choices = self.reply.choices if self.first is not None else [Choice() for _ in range(count * len(self.prompts))]
        records = []
        for number, (text, prompt) in enumerate(zip(self.texts, self.prompts, strict=True)):
            said = choices[number * count : (number + 1) * count]
            records.append(Record(**common, **_told(text, prompt, said)))
        return records

    async def _read_chat(self, asked: ChatAsked, served: Served) -> None:
        messages = [turn.message for turn in asked.messages]
        self.prompts = [await self.engine.tokenise(served.chat, messages, asked.rendered_tools)]
        self.texts = ["\n".join(message["content"] for message in messages)]

    async def _read_completion(self, asked: CompletionAsked, served: Served) -> None:
        prompts: list[Ids] = []
        for prompt in asked.prompts:
            if isinstance(prompt, str):
                prompts.append(await self.engine.tokenise(served.plain, prompt))
                self.texts.append(prompt)
            else:
                served.check_ids(prompt)
                prompts.append(prompt)
                self.texts.append(await self.engine.tokenise(served.renderer.decode, prompt))
        self.prompts = prompts

    def _check_count(self, count: int) -> None:
        limit = self.engine.settings.choices_limit
        if not 1 <= count <= limit:
            raise RequestError(400, f"prompts times n is {count}; it may be 1 to {limit}", "invalid_value", "n")

    def _sampling(self, asked: Asked, room: int, number: int) -> Sampling:
        """How choice `number` is drawn; every choice has a seed of its own."""
        return Sampling(
            max_tokens=room,
            temperature=self.engine.settings.temperature if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=None if asked.seed is None else (asked.seed + number) % 2**63,
            stop=asked.stops,
            top_logprobs=asked.tops or 0,
            logprobs=asked.tops is not None,
        )

    def _mark_first(self) -> None:
        if self.first is None:
            self.first = time.monotonic() - self.start

    @contextmanager
    def _course(self) -> Iterator[None]:
        """Sets the status by the way the block is left, and takes the job back if it is not done."""
        try:
            yield
            self.status = 200
        except (asyncio.CancelledError, GeneratorExit) as reason:
            self.stopped(reason)
            raise
        finally:
            self.job.cancel()


def _told(text: str, prompt: Ids, choices: list[Choice]) -> dict[str, Any]:
    """A record's fields about one prompt and its choices."""
    answer = choices[0]
    return {
        "prompt": text,
        "answer": answer.text if answer.pieces else None,
        "prompt_characters": len(text),
        "answer_characters": len(answer.text),
        "prompt_tokens": len(prompt),
        "answer_tokens": sum(len(choice.pieces) for choice in choices),
        "finish": answer.finish,
        "is_json": is_json(answer.text) if answer.finish else None,
    }
