"""The engine: holds the served models, queues requests and lets them join each model's running batch, in one thread of its own."""

import asyncio
import copy
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from tunesmith.base import DataError, ModelError
from tunesmith.data.example import Message
from tunesmith.data.render import Renderer
from tunesmith.models.generate import Piece, Sampling
from tunesmith.models.load import Loaded
from tunesmith.models.scheduler import Scheduler

from .request_error import RequestError
from .settings import Serve

logger = logging.getLogger(__name__)

Ids = list[int]


@dataclass(eq=False)
class Job:
    """One request's prompts on their way through the engine; iterate it for its pieces.

    `Piece.index` counts the job's own prompts. Iteration ends when every prompt has finished.
    """

    model: str
    prompts: list[Ids]
    samplings: list[Sampling]
    loop: asyncio.AbstractEventLoop
    cancelled: bool = False
    left: int = 0
    pieces: asyncio.Queue[Piece | RequestError] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.left = len(self.prompts)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces as they are decoded.

        Raises:
            RequestError: the model failed, or the engine closed, before the job was done.
        """
        left = len(self.prompts)
        while left:
            piece = await self.pieces.get()
            if isinstance(piece, RequestError):
                raise piece
            left -= piece.finish is not None
            yield piece

    def cancel(self) -> None:
        """Nobody waits for the answer any more; harmless when it is already there."""
        self.cancelled = True

    def deliver(self, piece: Piece | RequestError) -> None:
        """Hand over a piece, or why no more will come; called from the engine's thread."""
        if isinstance(piece, Piece) and piece.finish is not None:
            self.left -= 1
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


def failed() -> RequestError:
    """A step of the model went wrong."""
    return RequestError(500, "the model failed on this request; the server's log says why", "model_failed")


def closed() -> RequestError:
    """Nothing is answered any more."""
    return RequestError(503, "the server is shutting down", "shutting_down")


class Served:
    """A model under the name it is served by, its running batch, and its own copy of the tokenizer.

    The copy is needed because a fast tokenizer must not be used in two threads while one of them changes its settings.
    """

    def __init__(self, name: str, loaded: Loaded, settings: Serve) -> None:
        self.name, self.loaded, self.settings = name, loaded, settings
        self.renderer = Renderer(copy.deepcopy(loaded.tokenizer))
        self.context = min(loaded.longest or settings.cache, settings.cache) - len(loaded.prefix)
        self.prompt_limit = min(settings.prompt_limit, self.context - 1)
        self.scheduler = self.fresh()
        self.owners: dict[int, tuple[Job, int]] = {}
        """By the scheduler's number: whose prompt it is, and which of them."""

    def fresh(self) -> Scheduler:
        """An empty batch."""
        settings = self.settings
        return Scheduler(self.loaded, settings.batch, settings.chunk, settings.cache, keep=True)

    def drop_cancelled(self) -> None:
        """Free the places of answers that nobody waits for."""
        for number in [number for number, (job, _) in self.owners.items() if job.cancelled]:
            self.scheduler.cancel(number)
            del self.owners[number]

    def step(self) -> None:
        """Every answer's next token goes to whom it belongs."""
        for piece in self.scheduler.step():
            job, number = self.owners[piece.index]
            job.deliver(replace(piece, index=number))
            if piece.finish is not None:
                del self.owners[piece.index]

    def give_up(self, reason: Callable[[], RequestError]) -> None:
        """Tell whoever still waits, and begin afresh."""
        for job in {job for job, _ in self.owners.values() if not job.cancelled}:
            job.deliver(reason())
        self.owners.clear()
        self.scheduler = self.fresh()

    def chat(self, messages: list[Message], tools: list[dict[str, Any]]) -> Ids:
        """Prompt tokens of a conversation, as in training; RequestError (400) if the template cannot render it, (500) if it does not end."""
        try:
            if tools and self.renderer.ignores_tools(messages, tools):
                raise RequestError(
                    400, f"the chat template of {self.name!r} ignores tools; leave them out", "unsupported", "tools"
                )
            return self.renderer.prompt(messages, tools)
        except DataError as error:
            raise RequestError(400, str(error), "invalid_messages", "messages") from None
        except ModelError as error:
            raise RequestError(500, str(error), "template_failed", "messages") from None

    def plain(self, text: str) -> Ids:
        """Tokens of a text to continue, as in training; nothing in it is special."""
        return self.renderer.plain(text)

    def check(self, prompt: Ids, asked: tuple[str, int | None], settings: Serve) -> int:
        """How many tokens the answer to `prompt` may have; RequestError (400) if the prompt does not fit, or what was asked for (by which field)."""
        if not prompt:
            raise RequestError(400, "the prompt is empty", "empty_prompt", "prompt")
        if len(prompt) > self.prompt_limit:
            reason = f"the prompt has {len(prompt)} tokens, {self.name!r} takes {self.prompt_limit}"
            raise RequestError(400, reason, "context_length_exceeded", "prompt")
        room = min(self.context - len(prompt), settings.answer_limit)
        field, answer = asked
        if answer is None:
            return min(room, settings.answer_default)
        if answer > room:
            raise RequestError(
                400,
                f"{field} is {answer}; after this prompt there is room for {room}",
                "context_length_exceeded",
                field,
            )
        return answer

    def check_ids(self, ids: Ids) -> None:
        """Refuse token numbers that the model does not have."""
        size = len(self.loaded.model.get_input_embeddings().weight)
        if any(not 0 <= token < size for token in ids):
            raise RequestError(
                400, f"prompt: token numbers of {self.name!r} go from 0 to {size - 1}", "invalid_prompt", "prompt"
            )


class Engine:
    """Answers requests for the models it was given.

    One thread owns the models. It lets newcomers join at every step, oldest first; models with something to do take turns, a step each.

    Args:
        models: by the name clients ask for.
        settings: limits of queue, batch, prompt.
    """

    def __init__(self, models: Mapping[str, Loaded], settings: Serve) -> None:
        self.settings = settings
        self.models = {name: Served(name, loaded, settings) for name, loaded in models.items()}
        self._coming: list[Job] = []
        self._numbers = count()
        self._lock = threading.Lock()
        self._closed = self._called = False
        self._worker = ThreadPoolExecutor(1, "engine")
        self._scribe = ThreadPoolExecutor(1, "tokenise")

    def served(self, name: str) -> Served:
        """The model called `name`; RequestError (404) that names those there are."""
        if name not in self.models:
            raise RequestError(
                404, f"model {name!r} does not exist; there are {', '.join(self.models)}", "model_not_found", "model"
            )
        return self.models[name]

    @property
    def waiting(self) -> int:
        """Answers that wait for a place in their model's batch."""
        with self._lock:
            return self._waiting()

    @property
    def running(self) -> int:
        """Answers under way."""
        return sum(len(served.scheduler.running) for served in self.models.values())

    def _waiting(self) -> int:
        queued = sum(len(served.scheduler.waiting) for served in self.models.values())
        return queued + sum(len(job.prompts) for job in self._coming)

    async def tokenise(self, function: Any, *arguments: Any) -> Any:
        """Call a tokenising method of a Served in the one thread that may, leaving the event loop free."""
        return await asyncio.get_running_loop().run_in_executor(self._scribe, function, *arguments)

    def submit(self, model: str, prompts: list[Ids], samplings: list[Sampling]) -> Job:
        """Queue one request's prompts, each with its sampling; to be called from an event loop.

        Raises:
            RequestError: 429 if too much waits already, 503 if the engine is closed.
        """
        job = Job(model, prompts, samplings, asyncio.get_running_loop())
        with self._lock:
            if self._closed:
                raise closed()
            waiting = self._waiting()
            if waiting + len(prompts) > max(self.settings.queue, len(prompts)):
                raise RequestError(429, f"{waiting} answers wait already; try again in a moment", "queue_full")
            self._coming.append(job)
            self._call()
        return job

    def _call(self) -> None:
        """Queue `_work`, unless a call waits already; with the lock held."""
        if not self._called:
            self._called = True
            self._worker.submit(self._work).add_done_callback(_report)

    def close(self) -> None:
        """Drop what waits, stop what runs after its present step, and let the threads end; may be called twice."""
        with self._lock:
            self._closed = True
        self._worker.shutdown()
        self._scribe.shutdown()

    def _work(self) -> None:
        """Go on until there is nothing left to do; it finds nothing if an earlier call did its work."""
        with self._lock:
            self._called = False
        while not self._closed and self._take():
            for served in self.models.values():
                served.drop_cancelled()
                if not served.scheduler.idle:
                    self._step(served)
        if self._closed:
            self._take()
            for served in self.models.values():
                served.give_up(closed)

    def _step(self, served: Served) -> None:
        done = False
        try:
            served.step()
            done = True
        finally:
            if not done:  # the error goes on to the log; who waits for other models is served by another call
                served.give_up(failed)
                with self._lock:
                    if not self._closed:
                        self._call()

    def _take(self) -> bool:
        """Let newcomers queue at their models; whether there is anything to do."""
        with self._lock:
            for job in self._coming:
                served = self.models[job.model]
                for place, (prompt, sampling) in enumerate(zip(job.prompts, job.samplings, strict=True)):
                    number = next(self._numbers)
                    served.scheduler.add(number, prompt, sampling)
                    served.owners[number] = job, place
            self._coming.clear()
        return not all(served.scheduler.idle for served in self.models.values())


def _report(work: "Future[None]") -> None:
    """Log what went wrong; the jobs concerned were told, the next ones start afresh."""
    error = work.exception()
    if error is not None:
        logger.error("a batch failed: %s", error, exc_info=error)
