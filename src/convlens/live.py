"""A run that is trained, seen from another process: whether it still is, and the wish to stop and keep what there is.

A run has a lock while it is trained, which goes with its process. `convlens train` also writes down which process it
is; that one takes SIGUSR1 as the wish: the step under way ends, and the run is finished as if its recipe ended there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from .distributed import rank
from .errors import UserError
from .files import write_json
from .run import Run

WISH = getattr(signal, "SIGUSR1", None)  # Windows has none


@contextmanager
def stoppable(run: Run, stop: threading.Event) -> Iterator[None]:
    """Inside the `with`, `ask_to_stop` in any process of this machine sets `stop`. Of several processes that train
    together the first takes the wish, and the training tells the others."""
    if WISH is None or rank():
        yield
        return
    old = signal.signal(WISH, lambda _number, _frame: stop.set())
    try:
        write_json(_trainer(run), {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        _trainer(run).unlink(missing_ok=True)
        signal.signal(WISH, old)


def is_trained(run: Run) -> bool:
    """Whether a process trains the run, or finishes it."""
    if run.finished or not run.path.is_dir():  # a lock would make the folder anew
        return False
    lock = filelock.FileLock(run.path / ".lock")
    try:
        with lock.acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a folder that cannot be written to is not trained from here
        return False


def ask_to_stop(run: Run) -> None:
    """Raises UserError where nothing trains the run, or no process on this machine that could be asked, or where there
    is nothing to keep yet."""
    if not is_trained(run):
        raise UserError(f"the run {run.path.name} is not being trained")
    if not run.history:
        raise UserError("the first epoch is not done: there is nothing to keep yet")
    trainer = {}
    with suppress(OSError, ValueError):
        trainer = json.loads(_trainer(run).read_text(encoding="utf-8"))
    if WISH is None or trainer.get("host") != socket.gethostname() or not isinstance(trainer.get("pid"), int):
        raise UserError(
            "the training cannot be asked from here: press Ctrl-C where it runs, then "
            "convlens train --resume RUN --finish keeps what there is"
        )
    try:
        os.kill(trainer["pid"], WISH)
    except OSError as error:
        raise UserError(f"the training cannot be asked to stop: {error.strerror}") from error


def _trainer(run: Run) -> Path:
    return run.path / ".trainer"
