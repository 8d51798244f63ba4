"""The web application: OpenAI's chat completions, completions and models, beside health and metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sse_starlette.sse import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .answer import Answer
from .engine import Engine
from .guard import OPEN, Guard
from .log import CLIENT_LEFT, RequestLog
from .meters import Meters
from .request_error import RequestError
from .schema import Asked, ChatAsked, CompletionAsked
from .settings import Serve

T = TypeVar("T")

GRACE = 4.5
"""Seconds that a streamed answer has left when the server is told to end, a little less than others have."""


def create_app(engine: Engine, settings: Serve, log: RequestLog | None, token: str) -> FastAPI:
    """The application; when it ends it closes `engine` and `log`.

    Args:
        engine: answers the requests.
        settings: limits and allowed hosts.
        log: keeps the requests; None keeps none.
        token: what clients send as `Authorization: Bearer TOKEN`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()
        if log is not None:
            log.close()

    application = FastAPI(title="tunesmith", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    application.add_middleware(Guard, settings=settings, token=token)
    for error in (RequestError, HTTPException, Exception):
        application.add_exception_handler(error, _refuse)
    meters = Meters(engine)
    _add_models(application, engine)
    _add_answers(application, engine, log, meters)

    @application.get(OPEN)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @application.get("/metrics")
    async def metrics() -> Response:
        return Response(meters.text(), media_type=CONTENT_TYPE_LATEST)

    return application


def _add_models(application: FastAPI, engine: Engine) -> None:
    started = int(time.time())

    def describe(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "tunesmith"}

    @application.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [describe(name) for name in engine.models]}

    @application.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return describe(engine.served(name).name)


def _add_answers(application: FastAPI, engine: Engine, log: RequestLog | None, meters: Meters) -> None:
    def note(answer: Answer) -> None:
        for record in answer.records():
            meters.count(record)
            if log is not None:
                log.write(record)

    async def respond(request: Request, kind: type[Asked]) -> Response:
        """Run one request to its end, whatever that is; a stream goes on after this returns, and notes its own end."""
        answer = Answer(engine, kind, await request.body(), note)
        try:
            await _while_there(request, answer.prepare())
            if not answer.streams:
                return JSONResponse(await _while_there(request, answer.whole()))
        except (RequestError, asyncio.CancelledError) as reason:
            answer.stopped(reason)
            raise
        finally:
            if not answer.streams or answer.error is not None:
                note(answer)
        return EventSourceResponse(
            answer.events(), sep="\n", client_close_handler_callable=answer.leave, shutdown_grace_period=GRACE
        )

    @application.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await respond(request, ChatAsked)

    @application.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await respond(request, CompletionAsked)


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves (RequestError 499, heard by nobody)."""
    doing = asyncio.create_task(work)
    gone = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise RequestError(CLIENT_LEFT, "the client left")
        return doing.result()
    finally:
        doing.cancel()
        gone.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(_: Request, error: Exception) -> Response:
    """A refusal in the envelope; of anything else only that it happened, for its text may hold what is private."""
    if isinstance(error, RequestError):
        return error.response
    if isinstance(error, HTTPException):
        return RequestError(
            error.status_code, f"{error.detail}; there are /v1/chat/completions, /v1/completions and /v1/models"
        ).response
    return RequestError(500, "the server failed; its log says why", "internal_error").response
