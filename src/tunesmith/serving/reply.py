"""Answers in OpenAI's words: completion objects, stream chunks, calls of tools, and both schemas of log-probabilities."""

import json
import time
import uuid
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from tunesmith.data.calls import Said, read_calls, sure
from tunesmith.data.render import Renderer
from tunesmith.models.generate import Piece

from .spelling import Spelling

Json = dict[str, Any]


@dataclass
class Choice:
    """One answer as it grows."""

    pieces: list[Piece] = field(default_factory=list)
    shown: int = 0
    """Characters that a stream has told already."""

    @property
    def text(self) -> str:
        """What has been said so far."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish(self) -> str | None:
        """Why it ended: `stop`, `length`, or None while it goes on."""
        return self.pieces[-1].finish if self.pieces else None


@dataclass
class Reply:
    """One request's answer in the form of its endpoint."""

    route: Literal["chat", "completions"]
    model: str
    renderer: Renderer
    prompt_tokens: int
    choices: list[Choice]
    logprobs: bool
    with_usage: bool = False
    tools: frozenset[str] = frozenset()
    """Names of the tools that were offered; what an answer ends with is told as their calls where it is."""
    one_call: bool = False
    """Whether only the first of several calls is told."""

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.renderer)

    @cached_property
    def id(self) -> str:
        """Unique name of this answer."""
        return f"{'chatcmpl' if self.route == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"

    @cached_property
    def created(self) -> int:
        """Seconds since 1970."""
        return int(time.time())

    @property
    def usage(self) -> dict[str, int]:
        """Token counts; an answer's end token counts, for it was computed."""
        said = sum(len(choice.pieces) for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": said,
            "total_tokens": self.prompt_tokens + said,
        }

    @property
    def whole(self) -> Json:
        """The answer in one object."""
        choices = [self._whole(number, choice) for number, choice in enumerate(self.choices)]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage}

    def opening(self) -> list[Json]:
        """Chunks before the first piece: in a chat, who speaks."""
        if self.route == "completions":
            return []
        return [
            self._chunk(number, {"role": "assistant", "content": ""}, None, None) for number in range(len(self.choices))
        ]

    def chunk(self, piece: Piece) -> list[Json]:
        """Take a piece in and say it; nothing if it shows nothing."""
        choice = self.choices[piece.index]
        start = len(choice.text) if self.logprobs else 0
        choice.pieces.append(piece)
        logprobs = self._logprobs([piece], start) if self.logprobs else None
        ended = self._ended(choice)
        text = self._sure(choice, ended) if self.tools else piece.text
        said = []
        if text or logprobs:
            said.append(self._chunk(piece.index, {"content": text}, None, logprobs))
        if ended:
            numbered = [{"index": number, **call} for number, call in enumerate(_told(ended))]
            said.append(self._chunk(piece.index, {"tool_calls": numbered}, None, None))
        if piece.finish:
            said.append(self._chunk(piece.index, {}, "tool_calls" if ended else piece.finish, None))
        return said

    def _sure(self, choice: Choice, ended: Said | None) -> str:
        """What is new and no part of a call: up to where one may have begun, and in the end up to where one did."""
        text = choice.text
        if ended:
            end = text.index(ended.text) + len(ended.text)
        else:
            end = len(text) if choice.finish else sure(text, self.tools, choice.shown)
        found, choice.shown = text[choice.shown : end], max(end, choice.shown)
        return found

    def _ended(self, choice: Choice) -> Said | None:
        """What a finished answer said, if it ends with calls."""
        found = read_calls(choice.text, self.tools) if self.tools and choice.finish == "stop" else None
        return replace(found, calls=found.calls[:1]) if found and self.one_call else found

    def closing(self) -> list[Json]:
        """Chunks after the last piece: the token counts, if they were asked for."""
        return [{**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage}] if self.with_usage else []

    def _head(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind if self.route == "chat" else "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def _whole(self, number: int, choice: Choice) -> Json:
        logprobs = self._logprobs(choice.pieces, 0) if self.logprobs else None
        said: Json = {"text": choice.text}
        finish, ended = choice.finish, self._ended(choice)
        if self.route == "chat":
            said = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
        if ended:
            said["message"].update(content=ended.text or None, tool_calls=_told(ended))
            finish = "tool_calls"
        return {"index": number, **said, "logprobs": logprobs, "finish_reason": finish}

    def _chunk(self, number: int, delta: Json, finish: str | None, logprobs: Json | None) -> Json:
        said: Json = {"delta": delta} if self.route == "chat" else {"text": delta.get("content", "")}
        choice = {"index": number, **said, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.with_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _logprobs(self, pieces: list[Piece], start: int) -> Json | None:
        """Log-probabilities of the pieces' tokens in the endpoint's schema; an end token is not part of the answer."""
        told = [piece for piece in pieces if piece.token not in self.renderer.ends]
        if not told and len(pieces) == 1:
            return None
        if self.route == "chat":
            content = [
                {
                    **self._token(piece.token, piece.logprob),
                    "top_logprobs": [self._token(token, value) for token, value in piece.top],
                }
                for piece in told
            ]
            return {"content": content, "refusal": None}
        offsets = []
        for piece in pieces:
            offsets.append(start)
            start += len(piece.text)
        return {
            "tokens": [self._spelling.name(piece.token) for piece in told],
            "token_logprobs": [piece.logprob for piece in told],
            "top_logprobs": [{self._spelling.name(token): value for token, value in piece.top} for piece in told],
            "text_offset": offsets[: len(told)],
        }

    def _token(self, token: int, logprob: float) -> Json:
        return {"token": self._spelling.text(token), "logprob": logprob, "bytes": self._spelling.bytes(token)}


def _told(said: Said) -> list[Json]:
    """Calls as the API has them."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": _spelled(call.arguments)},
        }
        for call in said.calls
    ]


def _spelled(arguments: Json) -> str:
    """As JSON that can be sent: half a character, which a model may write, stays escaped."""
    return json.dumps(arguments, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
