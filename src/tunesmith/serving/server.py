"""Starts the server: finds its token, takes its port, runs uvicorn."""

import errno
import os
import secrets
import socket

import uvicorn
from fastapi import FastAPI

from tunesmith.base import ConfigError, MachineError

from .settings import Serve

TOKEN_VARIABLE = "TUNESMITH_TOKEN"
TOKEN_LENGTH = 16


def find_token(settings: Serve) -> tuple[str, bool]:
    """The bearer token, and whether it was made just now and must be shown to the user.

    Raises:
        ConfigError: the token file cannot be read, or the token is too short or holds blanks.
    """
    if settings.token_file is not None:
        try:
            given, origin = settings.token_file.read_text(encoding="ascii").strip(), str(settings.token_file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{settings.token_file}: no readable token ({error}); write one line of plain characters"
            ) from None
    elif TOKEN_VARIABLE in os.environ:
        given, origin = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return secrets.token_urlsafe(32), True
    if len(given) < TOKEN_LENGTH or not given.isascii() or len(given.split()) != 1:
        raise ConfigError(
            f"{origin}: a token is {TOKEN_LENGTH} or more plain characters without blanks; make a longer one"
        )
    return given, False


def open_port(settings: Serve) -> socket.socket:
    """A bound socket; its number is `socket.getsockname()[1]`.

    Raises:
        MachineError: the port is taken or not allowed, or the host is not an address of this machine.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise MachineError(f"host {host!r} is not a name this machine knows; choose another with --host") from None
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        reasons = {
            errno.EADDRINUSE: f"port {port} is taken by another program; choose another with --port",
            errno.EACCES: f"port {port} needs more rights than you have; choose one above 1023 with --port",
            errno.EADDRNOTAVAIL: f"host {host!r} is not an address of this machine; choose another with --host",
        }
        raise MachineError(reasons.get(error.errno or 0, f"cannot listen on {host} port {port}: {error}")) from None
    return found


def url_host(host: str) -> str:
    """A host as it stands in a URL, where an IPv6 address has brackets."""
    return f"[{host}]" if ":" in host else host


def run_server(application: FastAPI, port: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests under way may finish within five seconds."""
    server(application).run(sockets=[port])


def server(application: FastAPI) -> uvicorn.Server:
    """The configured uvicorn server, not yet started."""
    config = uvicorn.Config(
        application, log_level="warning", server_header=False, timeout_graceful_shutdown=5, lifespan="on"
    )
    return uvicorn.Server(config)
