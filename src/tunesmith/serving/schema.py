"""The requests this server understands: OpenAI's chat completions and completions, strictly read."""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from tunesmith.data.conversation import as_tools
from tunesmith.data.example import Message

from .request_error import RequestError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
}
"""Parameters that this server has not, with the values by which a client asks for nothing."""


class Closed(BaseModel):
    """Refuses fields it does not know and values of another type; finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Closed):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextPart(Closed):
    type: Literal["text"]
    text: str


class FunctionCall(Closed):
    name: str = Field(min_length=1)
    arguments: str

    @model_validator(mode="after")
    def _calls_with_an_object(self) -> "FunctionCall":
        if not isinstance(self.given, dict):
            raise ValueError("arguments is no JSON object")
        return self

    @property
    def given(self) -> Any:
        """What the function is called with, as templates were given it in training."""
        try:
            return json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return None


class ToolCall(Closed):
    id: str
    type: Literal["function"]
    function: FunctionCall


class Turn(Closed):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nothing(cls, given: Any) -> Any:
        """Clients send our own answers back as their libraries hold them, with every field that OpenAI has, most of them empty."""
        return (
            {name: value for name, value in given.items() if value not in (None, [])}
            if isinstance(given, dict)
            else given
        )

    @model_validator(mode="after")
    def _speaks(self) -> "Turn":
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        return self

    @property
    def message(self) -> Message:
        """The message in the form that training data has; OpenAI's newer name for the system role is undone."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        found: Message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        others = self.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
        for call, told in zip(others.get("tool_calls", ()), self.tool_calls or (), strict=True):
            call["function"]["arguments"] = told.function.given
        return {**found, **others}


class Function(Closed):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _promises_nothing(self) -> "Function":
        if self.strict:
            raise ValueError("strict: this server does not hold answers to a schema; leave it out, or say false")
        return self


class Tool(Closed):
    type: Literal["function"]
    function: Function


Stop = Annotated[str, Field(min_length=1)]


class Asked(Closed):
    """What both endpoints take."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_neutral(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if not _asks_nothing(name, value)}

    @model_validator(mode="after")
    def _streams(self) -> "Asked":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def count(self) -> int:
        """How many prompts it holds."""
        return 1

    @property
    def most_tokens(self) -> tuple[str, int | None]:
        """Tokens an answer may have, None if the request does not say; and the field that says so."""
        return "max_tokens", self.max_tokens

    @property
    def tops(self) -> int | None:
        """How many likeliest tokens to tell at each place beside the one taken; None for no log-probabilities."""
        return None

    @property
    def rendered_tools(self) -> list[dict[str, Any]]:
        """The tools that the prompt shall show; none where it has no place for them."""
        return []

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatAsked(Asked):
    """Body of POST /v1/chat/completions."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    _offered: list[Any] = PrivateAttr(default_factory=list)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_tools_as_given(cls, fields: Any, handler: ModelWrapValidatorHandler["ChatAsked"]) -> "ChatAsked":
        found = handler(fields)
        found._offered = list(fields.get("tools") or ()) if isinstance(fields, dict) else []
        return found

    @model_validator(mode="after")
    def _has_logprobs(self) -> "ChatAsked":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def most_tokens(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().most_tokens

    @property
    def tops(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def rendered_tools(self) -> list[dict[str, Any]]:
        """The tools that the prompt shall show, their fields in the order of the request: a template may spell them out as they come."""
        return [] if self.tool_choice == "none" else list(as_tools(self._offered))


class CompletionAsked(Asked):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def count(self) -> int:
        return len(self.prompts)

    @property
    def tops(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, each a text or token numbers."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        numbers = [token for token in self.prompt if isinstance(token, int)]
        return [numbers] if numbers else [prompt for prompt in self.prompt if not isinstance(prompt, int)]


def _asks_nothing(name: str, value: Any) -> bool:
    """Whether a field is absent in effect: null, or a parameter we have not at a value that changes nothing."""
    return value is None or any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL.get(name, ())
    )


A = TypeVar("A", bound=Asked)


def read(kind: type[A], body: bytes) -> A:
    """The request in `body`; RequestError (400) with the first field at fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = min(error.errors(include_url=False, include_context=False), key=_severity)
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        raise RequestError(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", "invalid_json")
    if first["type"] == "extra_forbidden":
        raise RequestError(
            400, f"{path}: this server has no such parameter; leave it out", "unsupported_parameter", path
        )
    reason = first["msg"].removeprefix("Value error, ")
    raise RequestError(400, f"{path or 'body'}: {reason[:1].lower()}{reason[1:]}", "invalid_value", path or None)


def _severity(problem: Any) -> int:
    """A misnamed field is told before what may follow from it."""
    return 0 if problem["type"] == "extra_forbidden" else 1
