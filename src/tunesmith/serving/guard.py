"""The door: who may enter, from where, and with how large a body; it stands before every route but the health check."""

import asyncio
from hmac import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .request_error import RequestError
from .settings import Serve

OPEN = "/healthz"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WRITES = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Methods that pages of other hosts may not use; OPTIONS is how a browser asks before them."""
DRAIN = 64
"""How many times the body limit is read and dropped, so that a client still sending hears why it was refused."""


class Guard:
    """ASGI middleware against DNS rebinding (Host), cross-site requests (Origin), strangers (token) and large bodies; pages of allowed hosts may read answers (CORS).

    The body is read here, whole, before the application runs: so the limit holds whatever length the client declares.
    """

    def __init__(self, app: ASGIApp, settings: Serve, token: str) -> None:
        self.app = app
        self.settings = settings
        self.expected = token.encode()
        self.allowed = {name.lower() for name in settings.allowed_hosts}
        self.names = {settings.host.lower(), *LOOPBACK, *self.allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == OPEN:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        page = next((origin for origin in headers.getlist("origin")[:1] if _name(origin) in self.allowed), None)
        if page is not None:
            send = _shared(send, page)
        try:
            self._check_place(scope["method"], headers)
            if page is not None and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight(headers)(scope, receive, send)
                return
            self._check_token(headers)
            body = await self._read(receive)
        except RequestError as refusal:
            await refusal.response(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), send)

    def _check_place(self, method: str, headers: Headers) -> None:
        host = _name(f"//{headers.get('host', '')}")
        if host not in self.names:
            raise RequestError(403, f"host {host!r} is not served here; add it to allowed_hosts", "host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and method in WRITES and not self._same(origin, headers.get("host", "")):
            raise RequestError(
                403,
                f"pages of {origin!r} may not call this server; add its host to allowed_hosts",
                "origin_not_allowed",
            )

    def _check_token(self, headers: Headers) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not compare_digest(given.strip().encode("latin-1"), self.expected):
            raise RequestError(
                401, "the bearer token is missing or wrong; send 'Authorization: Bearer TOKEN'", "invalid_api_key"
            )

    def _same(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is of this server, or of a host that was allowed by name."""
        return _place(origin) == host.lower() or _name(origin) in self.allowed

    async def _read(self, receive: Receive) -> bytes | None:
        """The request's body; None if the client left while sending it."""
        limit = self.settings.body_limit
        body = bytearray()
        total = 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while total <= DRAIN * limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    total += len(part)
                    if total <= limit:
                        body += part
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.settings.body_seconds:g} seconds") from None
        if total > limit:
            raise RequestError(413, f"the body is larger than the {limit} bytes this server takes", "body_too_large")
        return bytes(body)


def _name(address: str) -> str:
    """The host name of a URL, lower case; empty where there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _place(address: str) -> str:
    """Host and port of a URL as written, lower case."""
    return address.partition("://")[2].lower()


def _preflight(headers: Headers) -> Response:
    """Yes to a browser that asks whether a page may send what it wants to send."""
    told = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "authorization, content-type"),
        "Access-Control-Max-Age": "600",
    }
    if "access-control-request-private-network" in headers:
        told["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=told)


def _shared(send: Send, origin: str) -> Send:
    """A `send` that lets pages of `origin` read the response."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = "Retry-After"
            headers.append("Vary", "Origin")
        await send(message)

    return told


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, then what the server has to say (that the client left)."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
