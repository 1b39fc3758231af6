"""The processes of a server: one, or several that share its socket; from the model file to the last answer."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from .batching import THREAD
from .errors import FAILED, UserError
from .files import sha256_of
from .formats import open_shipped, shipped_file
from .guard import LINGER, Limits, log
from .meters import FOLDER
from .predict import Predictor
from .service import disagreement
from .wire import BoundedProtocol

POLLED = 0.2  # seconds between two looks at whether a signal has come
PAUSE = 1.0  # seconds from a worker's death to the next one's start: one that dies at once must not be started for ever
CLOSING = 15.0  # seconds that a worker has, beyond those for its answers, until it is killed
DEATH_SIGNAL = 1  # prctl's option: the signal that a process gets when its parent dies


@dataclass(frozen=True)
class Hosted:
    """A model file and how it is served; each process makes its own app of it. `threads` compute a batch. With a
    `ticket` the model is a run folder, and the page that shows it is served, too. Where `sha256` is given, the file
    must still be the one that has it."""

    model: Path
    builder: str | None
    limits: Limits
    threads: int
    ticket: str = ""
    sha256: str = ""

    def app(self) -> FastAPI:
        """Raises UserError where the file cannot be opened, is another one by now, or does not give its own logits."""
        from .app import make_app

        predictor, file = self.predictor(), None
        found = _sha256_of_model(self.model)
        if self.sha256 not in ("", found):
            raise UserError("the model file is not the one any more that this server was started with: start it again")
        shipped = predictor.shipped
        if shipped.format == "safetensors":
            import torch

            from .modelfile import load_model

            torch.set_num_threads(self.threads)
            file = load_model(shipped.path, self.builder)  # one of its own: explaining hangs hooks on it
        _log_as_json()
        app = make_app(predictor, self.limits, file, found)
        if unready := app.state.service.unready:
            raise UserError(unready, FAILED)
        if self.ticket and self.limits.token:
            from .exhibit import Exhibit
            from .pageroutes import add_page
            from .run import Run

            add_page(app, [Exhibit(Run.open(self.model), self.builder)], self.ticket, self.limits)
        return app

    def predictor(self) -> Predictor:
        return Predictor(open_shipped(self.model, self.builder, threads=self.threads))


def _sha256_of_model(model: Path) -> str:
    """Of a model file, or of that in a folder. Raises UserError where it cannot be read."""
    path = shipped_file(model)
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def run(hosted: Hosted, bound: socket.socket, workers: int, ready: Callable[[], None]) -> int:
    """Serve at a socket that listens until a signal comes, then answer what is under way. `ready` is called once the
    model is loaded. The exit code: 0 after SIGTERM, which is how servers are stopped, 130 after Ctrl-C, 1 where a
    process could not start.

    Raises:
        UserError: the model file cannot be opened, or does not give its own logits.
    """
    os.environ["OMP_NUM_THREADS"] = str(hosted.threads)  # read once, when torch is loaded
    seconds = math.ceil(hosted.limits.seconds + LINGER) + 1  # by then the guard has answered all that was under way
    if workers == 1:
        return _ended(serve_here(hosted.app(), bound, ready, seconds))
    if unready := disagreement(hosted.predictor()):  # said once, and before anybody is told
        raise UserError(unready, FAILED)
    hosted = replace(hosted, sha256=_sha256_of_model(hosted.model))
    _log_as_json()
    with TemporaryDirectory("-convlens") as folder:
        os.environ[FOLDER] = folder
        return _Supervisor(hosted, bound, workers, seconds).run(ready)


def _config(app: FastAPI, seconds: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=seconds,
    )


class _Server(uvicorn.Server):
    # uvicorn would raise the signal once more when all is done, which ends a process with another code
    capture_signals = nullcontext  # type: ignore[assignment]


def serve_here(app: FastAPI, bound: socket.socket, ready: Callable[[], None], seconds: int) -> int:
    """Serve `app` in this process until a signal comes; `seconds` are given to answers under way. For the rest see
    `run`."""
    server, caught = _Server(_config(app, seconds)), list[int]()

    def stop(number: int, frame: object) -> None:
        caught.append(number)
        server.handle_exit(number, frame)  # type: ignore[arg-type] # it does not look at the frame

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    ready()
    try:
        server.run([bound])
    except SystemExit:  # the app did not start; uvicorn has logged why
        return FAILED
    return 128 + signal.SIGINT if signal.SIGINT in caught else 0


def _ended(code: int) -> int:
    """The exit code; where the network still computes what nobody waits for, the process ends here, with it: Python
    would let it run into what is torn down around it."""
    if any(thread.name == THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class _Supervisor:
    """Several processes at one socket, each of which is replaced when it dies."""

    def __init__(self, hosted: Hosted, bound: socket.socket, workers: int, seconds: int) -> None:
        self.work, self.workers, self.seconds = (hosted, bound, seconds), workers, seconds
        self.processes: list[BaseProcess] = []
        self.caught: list[int] = []
        self.code = 0

    def run(self, ready: Callable[[], None]) -> int:
        """Until a signal comes, or a worker says that it cannot start; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self.caught.append(number))
        ready()
        replaced = 0.0
        while not self.caught and not self.code:
            if len(self.processes) < self.workers and time.monotonic() - replaced > PAUSE:
                while len(self.processes) < self.workers:
                    self.processes.append(self.started())
                replaced = time.monotonic()
            for process in self.gone(POLLED):
                log.error("worker %d ended with exit code %s and is replaced", process.pid, process.exitcode)
                if process.exitcode == STARTUP_FAILURE:  # it has said why, and the next could not start either
                    self.code = FAILED
        self.stop()
        return 128 + signal.SIGINT if signal.SIGINT in self.caught else self.code

    def started(self) -> BaseProcess:
        process = multiprocessing.get_context("spawn").Process(target=_work, args=self.work)
        # A Ctrl-C reaches all processes of a terminal and is ours to act on; what is blocked is inherited
        mask = getattr(signal, "pthread_sigmask", lambda *_: None)  # not on Windows
        mask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        mask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return process

    def gone(self, seconds: float) -> list[BaseProcess]:
        """Those that have ended, within so many seconds; they are no longer among ours."""
        ended = wait([process.sentinel for process in self.processes], seconds)
        found = [process for process in self.processes if process.sentinel in ended]
        self.processes = [process for process in self.processes if process not in found]
        for process in found:
            process.join()
        return found

    def stop(self) -> None:
        """End all; at once where one does not end by itself in time, or after a second Ctrl-C."""
        before, end = self.caught.count(signal.SIGINT), time.monotonic() + self.seconds + CLOSING
        for process in self.processes:
            process.terminate()
        while self.processes:
            self.gone(POLLED)
            if time.monotonic() > end or self.caught.count(signal.SIGINT) > max(before, 1):
                for process in self.processes:
                    process.kill()


def _work(hosted: Hosted, bound: socket.socket, seconds: int) -> None:
    """The life of a worker."""

    def leave_ctrl_c_to_the_parent() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    leave_ctrl_c_to_the_parent()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
    try:
        app = hosted.app()
    except UserError as error:  # the next worker could not start either
        print(f"convlens: {error}", file=sys.stderr)
        sys.exit(STARTUP_FAILURE)
    sys.exit(_ended(serve_here(app, bound, leave_ctrl_c_to_the_parent, seconds)))


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _log_as_json() -> None:
    """Lines of JSON on stderr, as those of the requests are."""
    handler = logging.StreamHandler()
    handler.setFormatter(_AsJson())
    for name in ("convlens.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.ERROR)
    logging.getLogger("python_multipart.multipart").disabled = True  # what is wrong with a form is told to who sent it
