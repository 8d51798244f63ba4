"""Endpoint: a larger model behind an OpenAI-compatible server thinks of instructions, told how others did (GPO, arXiv:2402.17564)."""

import json
import os
import re
from http.client import HTTPException
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

import numpy as np
from pydantic import Field, field_validator

from tunesmith.base import ConfigError, MachineError
from tunesmith.base.spec import secret

from .base import Proposer, Situation

SHOWN = 3
"""Rows that the model is shown, as in the paper."""
LONGEST = 300
"""Characters of a server's complaint that are passed on."""


class Endpoint(Proposer):
    """Ask any server that speaks OpenAI's chat completions. It is sent instructions with their scores, and three rows that examples are taken from."""

    kind: Literal["endpoint"] = "endpoint"
    url: str
    """Address up to the version, for example http://localhost:8000/v1."""
    model: str
    """What the server calls the model."""
    key_from_environment: str | None = None
    """Name of the environment variable that holds the key; the key itself stands nowhere in a run."""
    temperature: float = Field(1.0, ge=0)
    """How different proposals are."""
    max_tokens: int = Field(512, ge=16)
    """Length of a proposal."""
    timeout: float = Field(120.0, gt=0)
    """Seconds to wait for each answer."""

    @field_validator("url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise secret("url is written into the run, so it holds no password and no key; use key_from_environment")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise secret("url begins with http:// or https:// and names a server")
        return url.rstrip("/")

    def check(self) -> None:
        """Refuse a key that is not there.

        Raises:
            ConfigError: the environment variable is empty, or holds something else.
        """
        if self.key_from_environment and not self._key:
            raise ConfigError(
                f"prompt.proposer.key_from_environment: the environment variable {self.key_from_environment} is empty; set it to the key, or leave the setting out"
            )
        if not re.fullmatch(r"[!-~]*", self._key):
            raise ConfigError(
                f"prompt.proposer.key_from_environment: the environment variable {self.key_from_environment} holds blanks or letters that no key has; set it to the key"
            )

    def propose(self, situation: Situation, count: int, generator: np.random.Generator) -> list[str]:
        """One request for each; the same seed asks for the same."""
        asked = meta_prompt(situation, generator)
        seeds = generator.integers(0, 2**31, count).tolist()
        return [proposed(self._answer(asked, seed)) for seed in seeds]

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_from_environment, "").strip() if self.key_from_environment else ""

    def _answer(self, text: str, seed: int) -> str:
        body = {
            "model": self.model, "messages": [{"role": "user", "content": text}], "temperature": self.temperature,
            "max_tokens": self.max_tokens, "seed": seed,
        }  # fmt: skip
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        request = Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with _opener(self.url).open(request, timeout=self.timeout) as answer:
                return self._hidden(_said(answer.read()))
        except HTTPError as error:
            told = f"answered {error.code} {error.reason}: {_complaint(error)}"
            raise MachineError(self._refused(told)) from None
        except (OSError, HTTPException) as error:  # of names, connections, certificates and times, while reading too
            raise MachineError(self._refused(f"cannot be reached: {getattr(error, 'reason', None) or error}")) from None
        except (ValueError, LookupError, TypeError) as error:
            raise MachineError(self._refused(f"did not answer as OpenAI's servers do: {error!r}")) from None

    def _hidden(self, text: str) -> str:
        """What a server said, without the key, should it repeat it."""
        return text.replace(self._key, "<key>") if self._key else text

    def _refused(self, what: str) -> str:
        told = " ".join(self._hidden(what).split())[:LONGEST]
        return f"prompt.proposer: {self.url} {told}; mend url, model or key and run again, or set prompt.proposer={{kind: edits}}"


class _Stay(HTTPRedirectHandler):
    """Another address is not followed: the key is for this server alone."""

    def redirect_request(self, *_: Any) -> None:
        """None: the answer counts as a refusal."""


def _opener(url: str) -> OpenerDirector:
    """What asks a server; one on this machine is asked directly, whatever proxy the environment names."""
    host = urlsplit(url).hostname or ""
    here = host == "localhost" or host == "::1" or host.startswith("127.")
    return build_opener(_Stay, *([ProxyHandler({})] if here else []))


def _complaint(error: HTTPError) -> str:
    """What a server says of its refusal, as far as it comes."""
    try:
        return error.read().decode("utf-8", "replace")
    except (OSError, HTTPException) as broken:
        return f"(the rest was lost: {broken!r})"


def _said(raw: bytes) -> str:
    content = json.loads(raw)["choices"][0]["message"]["content"]
    if not isinstance(content, str) or not content.strip():
        raise ValueError("the answer is empty")
    return content


def meta_prompt(situation: Situation, generator: np.random.Generator) -> str:
    """What the model is asked: instructions with scores, worst first, some rows, and by how many words to differ."""
    told = sorted((*situation.past, situation.current), key=lambda trial: trial.score)
    tried = "\n\n".join(f"Instruction: {trial.instruction or '(none)'}\nScore: {trial.score:.1f}" for trial in told)
    shown = generator.permutation(len(situation.examples))[:SHOWN]
    rows = "\n\n".join(
        f"Input: {situation.examples[row].asked[-1].get('content') or ''}\nOutput: {situation.examples[row].gold}"
        for row in shown
    )
    return (
        "A language model is given an instruction before each input. Improve the instruction so that it scores more.\n\n"
        f"Instructions tried so far, with their scores ({situation.unit}):\n\n{tried}\n\n"
        f"Some inputs with the outputs that are wanted:\n\n{rows}\n\n"
        f"The current instruction is:\n{situation.current.instruction or '(none)'}\n\n"
        f"Write a better one. Change at most {situation.limit} words of the current one, and do not quote the inputs. "
        "Put it between <instruction> and </instruction>."
    )


def proposed(text: str) -> str:
    """The instruction in a model's answer: what stands between the marks, else all of it."""
    found = re.search(r"<instruction>(.*?)(?:</instruction>|$)", text, re.DOTALL)
    return (found[1] if found else text).strip()
