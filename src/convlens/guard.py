"""Who may ask a server, how much, and for how long; and what every answer of it carries.

One ASGI middleware around the whole app, so that what is added to the app is guarded, too. It reads no body by itself:
it counts what the app reads.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from .errors import UserError
from .meters import Meters
from .uploads import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/healthz", "/readyz")  # what a supervisor asks without a token
LINGER = 2.0  # seconds in which the rest of a refused body is thrown away, so that its sender reads the answer
SAFE = {  # unless the route sets its own
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
UNREAD = "unread"  # in the lifespan's state: what counts and logs an answer to what could not be read as a request
GONE = "gone"  # in a scope, where a route has put it: what is called when the client has hung up
ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)
log = logging.getLogger("convlens.serve")


@dataclass(frozen=True)
class Limits:
    """What a server allows. `hosts` are the names that a request may call it by; with `addresses` any number address,
    too, which no rebinding of a name can forge. `held` bounds the bytes of all bodies together that wait or are worked
    on; `seconds` a request from its headers to the end of its answer."""

    token: str | None = None
    hosts: tuple[str, ...] = LOOPBACK
    addresses: bool = False
    bytes: int = 20_000_000
    held: int = 200_000_000
    pixels: int = 25_000_000
    images: int = 64
    seconds: float = 30.0
    batch: int = 32
    wait: float = 0.002
    queue: int = 512
    log: bool = True

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server: a name that it was told, or an address where those are allowed."""
        name = re.sub(r":\d{1,5}$", "", host).lower()
        name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        if name in self.hosts:
            return True
        if not self.addresses:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class Guard:
    """`app` behind `limits`. A Refusal or UserError that a route raises is answered with its sentence, anything else
    with 500 and no word of what it was, which is logged."""

    def __init__(self, app: App, limits: Limits, meters: Meters) -> None:
        self.app, self.limits, self.meters = app, limits, meters
        self.held = 0
        self.expected = limits.token.encode() if limits.token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket, and what is not looked at is not let in
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        scope["id"] = given.decode() if ID.fullmatch(given) else secrets.token_hex(8)
        exchange = _Exchange(self, scope, headers, receive, send)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.limits.seconds):
                await exchange.run()
        except TimeoutError:
            await exchange.late()
        finally:
            self.held -= exchange.held
            seconds = time.perf_counter() - began
            note(self.limits, self.meters, scope, exchange.status, seconds)

    def admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raises Refusal where the request is not for us, not from our own page, without the token, or too large."""
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.limits.knows(host):
            raise Refusal(421, "this server is not known by the name in the Host header: --allow-host adds one")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2].lower() != host.lower():
            raise Refusal(403, "a page of another site may not use this server")
        if self.expected and scope["path"] not in OPEN:
            scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), self.expected):
                raise Refusal(
                    401, "this server wants its token: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"}
                )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal(415, "a body is taken without Content-Encoding only")
        if int(headers.get(b"content-length", b"0")) > self.limits.bytes:
            raise self.too_large()

    def too_large(self) -> Refusal:
        return Refusal(413, f"a request may have {self.limits.bytes:,} bytes")


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        self.guard, self.scope, self.headers = guard, scope, headers
        self._receive, self._send = receive, send
        self.status, self.seen, self.held = 0, 0, 0
        self.begun = False  # the answer
        self.waits = headers.get(b"expect", b"").lower() == b"100-continue"  # to be told to send the body
        self.whole = not int(headers.get(b"content-length", b"0")) and b"transfer-encoding" not in headers  # the body

    async def run(self) -> None:
        try:
            self.guard.admit(self.scope, self.headers)
            await self.guard.app(self.scope, self.receive, self.send)
        except Refusal as refusal:
            await self.refuse(refusal)
        except UserError as error:
            await self.refuse(Refusal(422, str(error)))
        except Exception:
            log.exception("request %s failed", self.scope["id"])
            if self.begun:
                raise
            await self.refuse(Refusal(500, f"an error of the server, logged as {self.scope['id']}"))

    async def receive(self) -> Message:
        self.waits = False  # who is received from is told
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.seen += size
            self.whole = not message.get("more_body", False)
            if self.seen > self.guard.limits.bytes:
                raise self.guard.too_large()
            self.held += size
            self.guard.held += size
            if self.guard.held > self.guard.limits.held:
                raise busy("the server has no memory left for another body")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            own = message.setdefault("headers", [])
            names = {name for name, _ in own}
            own += [(name, value) for name, value in SAFE.items() if name not in names]
            own.append((b"x-request-id", self.scope["id"].encode()))
            if not self.whole:
                own.append((b"connection", b"close"))
        elif not self.whole and not message.get("more_body", False):
            await self._send({**message, "more_body": True})  # the answer is all there, by its Content-Length
            await self.throw_away()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def throw_away(self) -> None:
        """Read what is still sent: a connection that is closed on unread bytes takes the answer with it."""
        if self.waits:  # then nothing is sent
            return
        try:
            async with asyncio.timeout(LINGER):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            return

    async def refuse(self, refusal: Refusal) -> None:
        body = json.dumps({"error": refusal.sentence}, ensure_ascii=False).encode(errors="replace")
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    async def late(self) -> None:
        """Answer a request whose time is over."""
        seconds = f"{self.guard.limits.seconds:g} seconds"
        if self.begun:
            raise ConnectionAbortedError(f"an answer was not taken within {seconds}")
        if self.whole:
            await self.refuse(busy(f"there was no answer within {seconds}"))
        else:
            await self.refuse(Refusal(408, f"the request did not arrive within {seconds}"))


def busy(sentence: str) -> Refusal:
    """503, and when to come again."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, sentence, {"Retry-After": "1"})


def note(limits: Limits, meters: Meters, scope: Scope, status: int, seconds: float) -> None:
    """Count an answer, and log it."""
    route = getattr(scope.get("route"), "path", "other")
    meters.answered(route, status, seconds)
    if not limits.log:
        return
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": scope["id"],
        "method": scope["method"][:16],
        "route": route,
        "status": status,
        "ms": round(seconds * 1e3, 2),
        "images": scope.get("images", 0),
        "batch": scope.get("batch", 0),
    }
    sys.stderr.write(json.dumps(line) + "\n")
