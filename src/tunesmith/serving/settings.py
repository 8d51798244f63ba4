"""Settings of the server: where it listens, what it allows, and what its log keeps."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from tunesmith.base import Spec


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


class RequestLogging(Spec):
    """What is kept of each request."""

    text: bool = True
    """Keep the words of prompts and answers; without them the log holds only counts, times and outcomes."""
    text_limit: PositiveInt = 20_000
    """Characters kept of any one text."""
    redact: tuple[Pattern, ...] = ()
    """Regular expressions whose matches are never stored, besides e-mail addresses, phone numbers and keys."""
    rows: PositiveInt = 1_000_000
    """Requests kept; the oldest go first."""
    days: PositiveFloat = 90.0
    """Days a request is kept."""


class Serve(Spec):
    """An OpenAI-compatible server of the base and the tuned model."""

    host: str = "127.0.0.1"
    """Address to listen on; the default can be reached from this machine only."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes any that is free."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients may call the server, besides `host`, localhost and the loopback addresses; web pages of these hosts may call it, too."""
    token_file: Path | None = None
    """File that holds the bearer token; else the variable TUNESMITH_TOKEN, else a new one is made and printed."""
    body_limit: PositiveInt = 1_048_576
    """Bytes of a request's body."""
    body_seconds: PositiveFloat = 30.0
    """Seconds a client may take to send its body."""
    prompt_limit: PositiveInt = 8_192
    """Tokens of one prompt; the model's own context may be shorter."""
    answer_limit: PositiveInt = 4_096
    """Tokens a request may ask for."""
    answer_default: PositiveInt = 512
    """Tokens an answer may have where the request does not say."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Temperature where the request does not say; 0 always takes the likeliest token, as evaluation does."""
    choices_limit: PositiveInt = 16
    """Answers one request may ask for: prompts times `n`."""
    batch: PositiveInt = 16
    """Answers of one model under way at a time; others join as these finish."""
    chunk: PositiveInt = 128
    """Tokens of prompts read in one step beside the answers under way; more delays these for longer, less delays the first token."""
    cache: int = Field(32_768, ge=64)
    """Tokens of each model whose keys and values can be in memory: of answers under way, and of finished ones until the room is needed; no prompt with its
    answer may be longer."""
    queue: PositiveInt = 128
    """Answers that may wait; a request beyond it is refused with status 429."""
    log: RequestLogging = RequestLogging()
    """What is kept of each request."""
