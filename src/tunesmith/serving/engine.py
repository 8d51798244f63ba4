"""The engine: holds the served models, queues requests and answers them in batches, in one thread of its own."""

import asyncio
import copy
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.base import DataError
from tunesmith.data.example import Message
from tunesmith.data.render import Renderer
from tunesmith.models.generate import Piece, Sampling, stream
from tunesmith.models.load import Loaded

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
    pieces: asyncio.Queue[Piece | None] = field(default_factory=asyncio.Queue)

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
            if piece is None:
                raise RequestError(500, "the model failed on this request; the server's log says why", "model_failed")
            left -= piece.finish is not None
            yield piece

    def cancel(self) -> None:
        """Nobody waits for the answer any more; harmless when it is already there."""
        self.cancelled = True

    def deliver(self, piece: Piece | None) -> None:
        """Hand over a piece, or None for "no more will come"; called from the engine's thread."""
        if piece is not None and piece.finish is not None:
            self.left -= 1
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Served:
    """A model under the name it is served by, with its own copy of the tokenizer.

    The copy is needed because a fast tokenizer must not be used in two threads while one of them changes its settings.
    """

    def __init__(self, name: str, loaded: Loaded, prompt_limit: int) -> None:
        self.name = name
        self.loaded = loaded
        self.renderer = Renderer(copy.deepcopy(loaded.tokenizer))
        self.context: int = loaded.model.config.get_text_config().max_position_embeddings
        self.prompt_limit = min(prompt_limit, self.context - 1)

    def chat(self, messages: list[Message], tools: list[dict[str, Any]]) -> Ids:
        """Prompt tokens of a conversation, as in training; RequestError (400) if the template cannot render it."""
        try:
            prompt = self.renderer.prompt(messages, tools)
            if tools and prompt == self.renderer.prompt(messages):
                raise RequestError(
                    400, f"the chat template of {self.name!r} ignores tools; leave them out", "unsupported", "tools"
                )
        except DataError as error:
            raise RequestError(400, str(error), "invalid_messages", "messages") from None
        return prompt

    def plain(self, text: str) -> Ids:
        """Tokens of a text to continue, in which nothing is special."""
        return self.renderer.encode(text)

    def check(self, prompt: Ids, answer: int | None, settings: Serve) -> int:
        """How many tokens the answer to `prompt` may have; RequestError (400) if prompt or wish do not fit."""
        if not prompt:
            raise RequestError(400, "the prompt is empty", "empty_prompt", "prompt")
        if len(prompt) > self.prompt_limit:
            reason = f"the prompt has {len(prompt)} tokens, {self.name!r} takes {self.prompt_limit}"
            raise RequestError(400, reason, "context_length_exceeded", "prompt")
        room = min(self.context - len(prompt), settings.answer_limit)
        if answer is None:
            return min(room, settings.answer_default)
        if answer > room:
            raise RequestError(
                400,
                f"max_tokens is {answer}; after this prompt there is room for {room}",
                "context_length_exceeded",
                "max_tokens",
            )
        return answer

    def check_ids(self, ids: Ids) -> None:
        """Refuse token numbers that the model does not have."""
        size = self.loaded.model.get_input_embeddings().num_embeddings
        if any(not 0 <= token < size for token in ids):
            raise RequestError(
                400, f"prompt: token numbers of {self.name!r} go from 0 to {size - 1}", "invalid_prompt", "prompt"
            )


class Engine:
    """Answers requests for the models it was given.

    One thread owns the models. What waits while it works is answered next in one batch per model, oldest first.

    Args:
        models: by the name clients ask for.
        settings: limits of queue, batch, prompt.
    """

    def __init__(self, models: Mapping[str, Loaded], settings: Serve) -> None:
        self.settings = settings
        self.models = {name: Served(name, loaded, settings.prompt_limit) for name, loaded in models.items()}
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._lock = threading.Lock()
        self._closed = False
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
        """Answers that wait for their turn."""
        with self._lock:
            return sum(len(job.prompts) for job in self._waiting)

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
                raise RequestError(503, "the server is shutting down", "shutting_down")
            waiting = sum(len(other.prompts) for other in self._waiting)
            if waiting + len(prompts) > max(self.settings.queue, len(prompts)):
                raise RequestError(429, f"{waiting} answers wait already; try again in a moment", "queue_full")
            self._waiting.append(job)
        self._worker.submit(self._turn).add_done_callback(_report)
        return job

    def close(self) -> None:
        """Drop what waits, stop what runs, and let the threads end; may be called twice."""
        with self._lock:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancel()
        self._worker.shutdown()
        self._scribe.shutdown()

    def _turn(self) -> None:
        """Answer one batch. Every job queues one turn; it finds nothing if its own went with an earlier batch."""
        batch = self._take()
        try:
            if batch:
                self._answer(batch)
        finally:
            for job in batch:
                if job.left:
                    job.deliver(None)

    def _take(self) -> list[Job]:
        """The oldest waiting job and as many others for the same model as fit one batch."""
        with self._lock:
            dropped = [job for job in self._waiting if job.cancelled]
            alive = [job for job in self._waiting if not job.cancelled]
            batch: list[Job] = []
            size = 0
            for job in alive:
                if not batch or (job.model == batch[0].model and size + len(job.prompts) <= self.settings.batch):
                    batch.append(job)
                    size += len(job.prompts)
            self._waiting = [job for job in alive if job not in batch]
            self._running = batch
        for job in dropped:
            job.deliver(None)
        return batch

    def _answer(self, batch: list[Job]) -> None:
        owners = [(job, number) for job in batch for number in range(len(job.prompts))]
        prompts = [prompt for job in batch for prompt in job.prompts]
        samplings = [sampling for job in batch for sampling in job.samplings]
        for piece in stream(self.models[batch[0].model].loaded, prompts, samplings):
            job, number = owners[piece.index]
            if not job.cancelled:
                job.deliver(replace(piece, index=number))
            if all(job.cancelled or not job.left for job in batch):
                return


def _report(turn: "Future[None]") -> None:
    """Log what went wrong in a turn; the jobs concerned were told, the next turn starts afresh."""
    error = turn.exception()
    if error is not None:
        logger.error("a batch failed: %s", error, exc_info=error)
