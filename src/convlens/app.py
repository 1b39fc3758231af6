"""The routes of a server, as JSON: make_app() is what uvicorn runs and what a page can be added to.

Handlers take the request and give the response by themselves: the numbers of a small network cost less time than a
framework takes to check a body that is then taken apart anyway. What they refuse is answered by the guard.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from . import __version__
from .apidoc import EXPLAIN, HEALTHZ, METRICS, MODEL, READYZ, predicting, with_security
from .batching import Closed, Full
from .errors import UserError, unknown
from .guard import GONE, UNREAD, Guard, Limits, busy, log, note
from .meters import CONTENT_TYPE, Meters
from .predict import Predictor
from .service import MissingError, Service
from .uploads import FIELDS, Refusal, Upload, read_upload

if TYPE_CHECKING:
    from .modelfile import ModelFile

LARGE_BODY = 65_536  # bytes from which on a body is taken apart in a thread
ASKED = ("method", "class", "against", "layer")  # of an explanation
Result = TypeVar("Result")


class Plain(APIRoute):
    """A route whose handler is called with the request, and with nothing around it: FastAPI's two stacks of resources
    and its own reading of the request cost more than all of ours. What is there for GET is there for HEAD, whose answer
    uvicorn sends without its body."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if {"HEAD": "GET"}.get(scope["method"], scope["method"]) not in (self.methods or ()):
            await super().handle(scope, receive, send)  # which says so
            return
        response: Response = await self.endpoint(Request(scope, receive))
        await response(scope, receive, send)


def make_app(
    predictor: Predictor, limits: Limits | None = None, file: ModelFile | None = None, sha256: str = ""
) -> FastAPI:
    """The app that serves `predictor` within `limits`. With `file`, the network in PyTorch, it explains, too. `sha256`
    is the model file's. `app.state.service` is what a page that is added can ask.

    Raises:
        UserError: what the model file says of itself is not JSON.
    """
    limits, meters = limits or Limits(), Meters()
    service = Service(predictor, limits, meters, file)
    about = _about(predictor, limits, sha256)

    async def predict(request: Request) -> Response:
        """Classify one picture or several."""
        with _in_turn(service):
            upload = await _upload(request, service, FIELDS)
            request.scope["images"] = len(upload.pictures)
            top = _top(upload.fields.get("top", 1))
            threshold = _threshold(upload.fields.get("threshold", 0.0))
            work = service.predict(upload.pictures, top, threshold)
            rows, request.scope["batch"] = await _unless_gone(request, work)
        bad = sum(bool(row.error) for row in rows)
        meters.pictures(len(rows) - bad, bad)
        if bad and len(rows) == 1:
            raise Refusal(422, rows[0].error)
        return _answered({"predictions": [vars(row) for row in rows]})

    async def explain(request: Request) -> Response:
        """Draw what in a picture speaks for a class."""
        if file is None:
            kind = predictor.shipped.format
            raise Refusal(
                409, f"an explanation needs the network in PyTorch (model.safetensors); this is served as {kind}"
            )
        with _in_turn(service):
            upload = await _upload(request, service, ASKED)
            request.scope["images"] = len(upload.pictures)
            if len(upload.pictures) > 1:
                raise Refusal(413, "one picture is explained at a time")
            method, *others = (_text(name, upload.fields.get(name)) for name in ASKED)
            try:
                work = service.explain(upload.pictures[0][1], method or "grad-cam", *others)
                png = await _unless_gone(request, work)
            except MissingError as error:
                raise Refusal(409, str(error)) from error
        return Response(png, media_type="image/png")

    async def model(_request: Request) -> Response:
        """What is served: classes, input, calibration, metrics."""
        return Response(about, media_type="application/json")

    async def healthz(_request: Request) -> Response:
        """Whether the process answers."""
        return _answered({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        """Whether the model is there and gives its own golden logits."""
        if service.unready:
            raise busy(service.unready)
        return _answered({"status": "ready"})

    async def metrics(_request: Request) -> Response:
        """What was counted, for Prometheus."""
        return Response(meters.text(), headers={"Content-Type": CONTENT_TYPE})

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        service.start()
        if service.unready:
            log.error(service.unready)
        yield {UNREAD: lambda scope, status: note(limits, meters, scope, status, 0.0)}
        service.stop()

    app = FastAPI(
        title="ConvLens",
        version=__version__,
        summary="A network, asked over HTTP.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.router.route_class = Plain
    for method, path, handler, documented in (
        ("POST", "/v1/predict", predict, predicting(limits.images)),
        ("POST", "/v1/explain", explain, EXPLAIN),
        ("GET", "/v1/model", model, MODEL),
        ("GET", "/healthz", healthz, HEALTHZ),
        ("GET", "/readyz", readyz, READYZ),
        ("GET", "/metrics", metrics, METRICS),
    ):
        app.add_api_route(path, handler, methods=[method], response_class=Response, **documented)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(Guard, limits=limits, meters=meters)
    described = app.openapi  # when it is asked for: a page may have been added by then
    app.openapi = lambda: with_security(described())  # type: ignore[method-assign] # as FastAPI's documentation does
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for these alone
    sentences = {404: "there is no such address here", 405: f"this address does not take {request.method[:16]}"}
    raise Refusal(error.status_code, sentences.get(error.status_code, str(error.detail)), dict(error.headers or {}))


@contextmanager
def _in_turn(service: Service) -> Iterator[None]:
    """Inside, the service is asked. Raises Refusal, 503, where it is not ready or has no room."""
    if service.unready:
        raise busy(service.unready)
    try:
        yield
    except (Full, Closed):
        raise busy("as many pictures wait as this server takes") from None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives. It is cancelled where the client hangs up: what it asked for has no turn any more. The
    protocol tells: a task that waits for it would be one more for every request."""
    task, gone = asyncio.current_task(), False

    def hung_up() -> None:
        nonlocal gone
        gone = True
        task.cancel()  # type: ignore[union-attr] # it is one that runs this

    request.scope[GONE] = hung_up
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()  # type: ignore[union-attr] # likewise
        raise Refusal(400, "the connection was closed before the answer was there") from None
    finally:
        del request.scope[GONE]


async def _upload(request: Request, service: Service, fields: tuple[str, ...]) -> Upload:
    """The pictures and fields of a request; fields may also stand in the address."""
    chunks, more = list[bytes](), True
    while more:
        message = await request.receive()
        if message["type"] != "http.request":
            raise Refusal(400, "the connection was closed before the request was whole")
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    body, kind = chunks[0] if len(chunks) == 1 else b"".join(chunks), request.headers.get("content-type", "")
    del chunks, message  # which hold all of it once more
    most = service.limits.images
    if len(body) > LARGE_BODY:
        (reading,) = service.pool.submit(lambda body: read_upload(body, kind, most, fields), [body])
        del body
        upload = await asyncio.wrap_future(reading)
    else:
        upload = read_upload(body, kind, most, fields)
    for name, value in request.query_params.multi_items() if request.scope["query_string"] else ():
        if name not in fields:
            raise UserError(str(unknown("parameter", name[:80], fields)))
        if name in upload.fields:
            raise UserError(f"{name} is given twice")
        upload.fields[name] = value
    return upload


def _top(value: Any) -> int:
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
    if type(number) is not int or not 1 <= number < 10**9:
        raise UserError(f"top is how many classes are told, 1 or more, not {_shown(value)}")
    return number


def _threshold(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise UserError(f"threshold is a probability from 0 to 1, not {_shown(value)}")
    return number


def _text(name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise UserError(f"{name} is a text, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _answered(value: Any) -> Response:
    return Response(json.dumps(value, ensure_ascii=False, allow_nan=False), media_type="application/json")


def _about(predictor: Predictor, limits: Limits, sha256: str) -> bytes:
    """What is said of the model: all but its weights, its recipe, and where it lies."""
    manifest = predictor.manifest
    told = {
        "format": predictor.shipped.format,
        "sha256": sha256,
        "builder": manifest.builder,
        "classes": manifest.classes,
        "input": asdict(manifest.input),
        "calibration": {**manifest.calibration.to_dict(), "note": manifest.calibration.note},
        "metrics": manifest.metrics,
        "limits": {name: getattr(limits, name) for name in ("bytes", "pixels", "images", "seconds")},
        "convlens": __version__,
    }
    try:
        return json.dumps(told, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
    except (TypeError, ValueError) as error:
        raise UserError("what the model file says of itself is not JSON: it is damaged") from error
