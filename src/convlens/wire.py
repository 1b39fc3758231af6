"""uvicorn's own HTTP protocol, with bounds that it has not: on the time and size of headers, on connections, and on how
long an answer lies there untaken."""

from __future__ import annotations

import asyncio
import json
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .guard import GONE, UNREAD

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol
else:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
    except ImportError:  # httptools is compiled, and not for every machine
        from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

CONNECTIONS = 1000  # at once; what holds more than that holds the process' file descriptors
HEADER_SECONDS = 10.0  # from a connection's first byte, or a request's, to the end of its headers
HEADER_BYTES = 65_536
WRITE_SECONDS = 20.0  # in which a client takes what fills the buffer of its connection
PIPELINED = 64  # requests that may wait on a connection for the answers before theirs; uvicorn would keep any number
CLOSE_SECONDS = 5.0  # in which it takes what is left when the connection is closed


class _Transport:
    """A transport that ends some seconds after its close(), whether the other side has taken all or not."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self.ending: asyncio.TimerHandle | None = None
        self.write, self.is_closing = transport.write, transport.is_closing  # for each request: without a detour

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if not self.is_closing():
            self._transport.close()
            self.ending = self._loop.call_later(CLOSE_SECONDS, self.abort)

    def abort(self) -> None:
        self.lose()
        self._transport.abort()

    def lose(self) -> None:
        """Nothing goes out any more: uvicorn tells only the last of several requests that came at once that nobody is
        there, and uvloop raises where one of the others is answered."""
        self.write = self.pause_reading = self.resume_reading = _nothing


def _nothing(*_: object) -> None:
    pass


class BoundedProtocol(Protocol):
    """Answers in JSON where a request is none; closes what does not come to the end of its headers, and what does not
    take its answers."""

    deadline: asyncio.TimerHandle | None = None
    untaken: asyncio.TimerHandle | None = None
    partial = 0  # bytes of a request whose headers are not whole

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Transport(transport, self.loop))  # type: ignore[arg-type] # it goes on to the real one
        if len(self.connections) > CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the server has too many connections")
            return
        self.deadline = self.loop.call_later(HEADER_SECONDS, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting: Any = getattr(self, "pipeline", ())  # h11 reads no further than the request under way
        if len(waiting) > PIPELINED:
            waiting.clear()
            self.transport.abort()
            return
        if self.cycle is None or self.cycle.response_complete:  # no request is under way: its headers are not whole
            self.partial += len(data)
            if self.partial > HEADER_BYTES:
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's headers may have {HEADER_BYTES:,} bytes"
                )
            elif self.deadline is None:
                self.deadline = self.loop.call_later(HEADER_SECONDS, self._late)
        elif self.deadline is not None:
            self.deadline.cancel()
            self.deadline, self.partial = None, 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self.untaken = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.untaken is not None:
            self.untaken.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.deadline, self.untaken, self.transport.ending):  # type: ignore[attr-defined] # _Transport's
            if timer is not None:
                timer.cancel()
        self.transport.lose()  # type: ignore[attr-defined] # likewise
        scope: dict[str, Any] = {} if self.cycle is None else {**self.cycle.scope}
        if GONE in scope:
            scope[GONE]()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's sentence, in plain text
        self._refuse(HTTPStatus.BAD_REQUEST, "this is not an HTTP request that can be read")

    def _late(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the headers did not arrive within {HEADER_SECONDS:g} seconds")

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps({"error": sentence}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\ncache-control: no-store\r\n"
            f"connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        if note := self.app_state.get(UNREAD):
            note({"id": secrets.token_hex(8), "method": ""}, status.value)
