"""The routes that the page asks, on any app, and the page's own files. What they answer is exhibit.py's."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from . import picturelists, walking
from .door import Door
from .errors import UserError
from .exhibit import Exhibit
from .guard import Guard, Limits
from .live import ask_to_stop, is_trained
from .meters import Meters
from .picturelists import Glance, Neighbourhood
from .run import Run
from .snapshots import ReplacedError, kept_epochs
from .uploads import Refusal
from .walking import read_off

FILES = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
STREAMED, POLLED, IDLE = 20.0, 0.3, 2.0  # seconds: of one stream, between two looks, until a training counts as over
RETRY = 300  # milliseconds after which a browser comes back
Epoch = int | None  # whose weights are asked; None: as they are now
From = Annotated[int, Query(alias="from")]
In = Annotated[int | None, Query(alias="in")]
Class = Annotated[str, Query(alias="class")]
POLICY = {  # for the page: its own files, and pictures that it makes itself
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def page_app(exhibits: Sequence[Exhibit], ticket: str) -> FastAPI:
    """The page alone, for who comes with the ticket."""
    app = FastAPI(title="ConvLens", openapi_url=None)
    limits = Limits(token=secrets.token_urlsafe(24), log=False)
    app.add_middleware(Guard, limits=limits, meters=Meters())
    add_page(app, exhibits, ticket, limits)
    return app


def add_page(app: FastAPI, exhibits: Sequence[Exhibit], ticket: str, limits: Limits) -> None:
    """Let `app`, whose guard has these `limits`, serve the page at / to who comes with the `ticket`, and its routes
    under /api; ?run=1 asks the second of the `exhibits`."""
    routes = APIRouter(prefix="/api", default_response_class=Response)
    neighbourhoods, glances = [Neighbourhood(each) for each in exhibits], [Glance(each) for each in exhibits]

    def of(run: int) -> Exhibit:
        if not 0 <= run < len(exhibits):
            raise UserError(f"there is no run {run}: {len(exhibits)} opened, numbered from 0")
        return exhibits[run]

    @routes.get("/run")
    def about(run: int = 0) -> Response:
        return _json({**of(run).about(), "runs": [each.run.path.name for each in exhibits]})

    @routes.post("/pictures")
    async def pictures(request: Request, digit: bool = False, look: bool = False, run: int = 0) -> Response:
        exhibit = of(run)
        try:
            body = await request.body()
        except ClientDisconnect:  # who draws on takes back the stroke before
            raise Refusal(400, "the connection was closed before the picture was whole") from None

        def kept() -> dict[str, Any]:
            added = exhibit.add(body, digit)
            return {**added, "look": exhibit.look(added["ref"], {}, brief=True)} if look else added

        return _json(await run_in_threadpool(kept))

    @routes.get("/picture/{ref}.png")
    def picture(ref: str, run: int = 0) -> Response:
        return _png(of(run).picture(ref))

    @routes.get("/look")
    def look(
        ref: str, off: str = "", brief: bool = False, epoch: Epoch = None, stamp: str = "", run: int = 0
    ) -> Response:
        return _json(of(run).look(ref, read_off(off), brief, epoch, stamp))

    @routes.get("/maps")
    def maps(
        ref: str,
        layer: str,
        off: str = "",
        first: From = 0,
        count: int = 64,
        epoch: Epoch = None,
        stamp: str = "",
        run: int = 0,
    ) -> Response:
        return _json(walking.maps(of(run).walk(ref, read_off(off), epoch, stamp), layer, first, count))

    @routes.get("/values")
    def values(
        ref: str,
        layer: str,
        channel: int = 0,
        side: str = "output",
        off: str = "",
        epoch: Epoch = None,
        stamp: str = "",
        run: int = 0,
    ) -> Response:
        return _json(walking.values(of(run).walk(ref, read_off(off), epoch, stamp), layer, channel, side))

    @routes.get("/number")
    def number(
        ref: str,
        layer: str,
        channel: int,
        row: int = 0,
        column: int = 0,
        given: In = None,
        off: str = "",
        epoch: Epoch = None,
        stamp: str = "",
        run: int = 0,
    ) -> Response:
        found = of(run).walk(ref, read_off(off), epoch, stamp)
        return _json(walking.explained(found, layer, channel, row, column, given))

    @routes.get("/filters")
    def filters(layer: str, channel: int | None = None, epoch: Epoch = None, run: int = 0) -> Response:
        return _json(of(run).filters(layer, channel, epoch))

    @routes.get("/heat")
    def heat(ref: str, method: str = "grad-cam", target: Class = "", epoch: Epoch = None, run: int = 0) -> Response:
        return _png(of(run).heat(ref, method, target, epoch))

    @routes.get("/images")
    def images(
        split: str = "test",
        label: Class = "",
        predicted: str = "",
        sort: str = "index",
        wrong: bool = False,
        page: int = 0,
        run: int = 0,
    ) -> Response:
        return _json(picturelists.images(of(run), split, label, predicted, sort, wrong, page))

    @routes.get("/confusion")
    def confusion(run: int = 0) -> Response:
        return _json(picturelists.confusion(of(run)))

    @routes.get("/near")
    def near(ref: str, run: int = 0) -> Response:
        of(run)
        return _json(neighbourhoods[run].near(ref))

    @routes.get("/mistakes")
    def mistakes(epoch: Epoch = None, run: int = 0) -> Response:
        of(run)
        return _json(glances[run].mistakes(epoch))

    @routes.get("/compare")
    def compare(kind: str = "", page: int = 0) -> Response:
        return _json(picturelists.compared(of(0), of(1), kind, page))

    @routes.get("/epochs")
    def epochs(run: int = 0) -> Response:
        return _json({"kept": kept_epochs(of(run).run), "history": of(run).run.history})

    @routes.get("/training")
    async def training(request: Request, run: int = 0) -> Response:
        seen = request.headers.get("last-event-id", "")
        rows = _events(of(run).run, int(seen) if seen.isdecimal() and len(seen) < 9 else 0)
        return StreamingResponse(rows, media_type="text/event-stream")

    @routes.post("/training/stop")
    def stop(run: int = 0) -> Response:
        ask_to_stop(of(run).run)
        return _json({"stopping": True})

    app.include_router(routes)
    app.add_api_route("/{path:path}", _file, methods=["GET"], include_in_schema=False, response_class=Response)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(ReplacedError, _replaced)
    app.add_middleware(Door, ticket=ticket, limits=limits)


async def _file(request: Request) -> Response:
    """A file of the page."""
    try:
        path = (FILES / (request.url.path.strip("/") or "index.html")).resolve()
        there = path.is_relative_to(FILES) and path.suffix in KINDS and path.is_file()
    except (ValueError, OSError):  # a name that no file can have: a zero byte, too long
        there = False
    if not there:
        raise Refusal(404, "there is no such address here")
    return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=POLICY)


async def _events(run: Run, last: int) -> AsyncIterator[str]:
    """The rows of the history behind the `last` one, as they are written, and `end` when the training is over. Ends by
    itself before the guard's time is over; a browser comes back and says where it was."""
    yield f"retry: {RETRY}\n\n"
    began, idle = time.monotonic(), 0.0
    while time.monotonic() - began < STREAMED:
        history, trained = await asyncio.to_thread(lambda: (run.history, is_trained(run)))
        for row in history[last:]:
            last += 1
            yield f"id: {last}\ndata: {json.dumps(row)}\n\n"
        # between the last epoch and the test there is a moment in which nobody holds the run
        idle = 0.0 if trained else idle + POLLED
        if run.finished or idle > IDLE:
            yield f"event: end\ndata: {json.dumps({'finished': run.finished})}\n\n"
            return
        await asyncio.sleep(POLLED)


async def _not_understood(_request: Request, error: Exception) -> Response:
    """A parameter that is missing, or no number."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for these alone
    first = error.errors()[0]
    raise Refusal(422, f"{first['loc'][-1]}: {first['msg'][:1].lower()}{first['msg'][1:]}")


async def _replaced(_request: Request, error: Exception) -> Response:
    raise Refusal(409, str(error))


def _png(data: bytes) -> Response:
    return Response(data, media_type="image/png")


def _json(value: Any) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode(errors="replace"), media_type="application/json")
