"""`convlens serve`: a model behind HTTP, from the flags to the last answer."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import secrets
import socket
import sys

from . import flags
from .errors import UserError

TOKEN = 16  # characters that a token has at least
BACKLOG = 2048  # connections that wait to be taken


def serve(
    model: flags.ModelPath,
    host: flags.Host = "127.0.0.1",
    port: flags.Port = 8000,
    token: flags.Token = None,
    no_auth: flags.NoAuth = False,
    allow_host: flags.AllowHost = None,
    workers: flags.Workers = 1,
    threads: flags.ServeThreads = 1,
    max_batch: flags.MaxBatch = 32,
    batch_wait: flags.BatchWait = 2.0,
    max_queue: flags.MaxQueue = 512,
    max_bytes: flags.MaxBytes = 20_000_000,
    max_held: flags.MaxHeld = 200_000_000,
    max_pixels: flags.MaxPixels = 25_000_000,
    max_images: flags.MaxImages = 64,
    timeout: flags.RequestSeconds = 30.0,
    log: flags.RequestLog = True,
    page: flags.WithPage = False,
    builder: flags.OwnModel = None,
    as_json: flags.Json = False,
) -> None:
    """Answer over HTTP: POST pictures to /v1/predict and /v1/explain; see docs/serve.md."""
    require_serve()
    from .guard import LOOPBACK, Limits
    from .workers import Hosted, run

    if not math.isfinite(timeout):
        raise UserError(f"--timeout is a number of seconds, not {timeout}")
    local = _is_loopback(host)
    token = token or None  # a variable that is empty is none
    if token is not None and (len(token) < TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(f"a token has {TOKEN} or more letters, digits and signs, such as `openssl rand -hex 16` gives")
    if not local and token is None and not no_auth:
        raise UserError(f"{host} is seen by other machines: give --token or CONVLENS_TOKEN, or say --insecure-no-auth")
    if page and workers > 1:
        raise UserError("--page keeps pictures in the memory of one process: give it no --workers")
    ticket = secrets.token_urlsafe(24) if page else ""
    limits = Limits(
        token=token or (secrets.token_urlsafe(24) if page else None),
        hosts=(*LOOPBACK, *(name.lower() for name in (host, *(allow_host or ())))),
        addresses=not local,
        bytes=max_bytes,
        held=max(max_held, max_bytes),
        pixels=max_pixels,
        images=max_images,
        seconds=timeout,
        batch=max_batch,
        wait=batch_wait / 1000,
        queue=max(max_queue, max_images),
        log=log,
    )
    bound = listen(host, port)
    address, number = bound.getsockname()[:2]
    url = f"http://[{address}]:{number}" if ":" in address else f"http://{address}:{number}"

    def ready() -> None:
        told = {"url": url, "pid": os.getpid()} | ({"page": f"{url}/?ticket={ticket}"} if page else {})
        print(json.dumps(told) if as_json else url, flush=True)
        if page:
            print(f"the page, to be opened once: {url}/?ticket={ticket}", file=sys.stderr, flush=True)

    with bound:
        sys.exit(run(Hosted(model, builder, limits, threads, ticket), bound, workers, ready))


def require_serve() -> None:
    """Raises UserError where the packages of the extra `serve` are not installed."""
    try:
        import fastapi  # noqa: F401 - only looked for
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError("serving needs FastAPI, uvicorn and more: pip install 'convlens[serve]'") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: whoever connects waits for an answer from here on. Port 0 is any that is free."""
    bound = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # or asyncio leaves Nagle on: 40 ms
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: it is no name of a host at all, such as a..b
        if bound:
            bound.close()
        why = getattr(error, "strerror", None) or "that is no name of a host"
        raise UserError(f"cannot listen at {host} port {port}: {why}; --port 0 takes a free one") from error
    return bound
