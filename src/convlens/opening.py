"""`convlens open`: a run in the browser, from a server on this machine that nobody else can ask."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import flags
from .errors import UserError
from .hosting import listen, require_serve

TOGETHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)  # torchrun's, which the page is no part of
PORT = 8573  # the same one each time: a browser remembers by address, of the page its language and the labels marked
KEPT = 50  # epochs that `convlens train --open` keeps the weights of


def open_(
    run: flags.RunPath,
    other: flags.OtherRun = None,
    port: flags.OpenPort = None,
    browser: flags.Browser = True,
    model: flags.OwnModel = None,
    data_dir: flags.DataDir = None,
) -> None:
    """Walk through a run in the browser: draw, drop a picture, look into every layer; two runs are compared."""
    require_serve()
    from .exhibit import Exhibit
    from .pageroutes import page_app
    from .run import Run
    from .workers import serve_here

    exhibits = [Exhibit(Run.open(path), model, data_dir) for path in (run, other) if path]
    ticket = secrets.token_urlsafe(24)
    bound = _listen(port)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}/?ticket={ticket}"

    def ready() -> None:
        print(f"{url}\nThis address opens the page, once. Ctrl-C ends it.", file=sys.stderr, flush=True)
        if browser:  # in a thread: a browser in the terminal would hold the server up
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        for exhibit in exhibits:
            threading.Thread(target=exhibit.warm, daemon=True).start()

    sys.exit(serve_here(page_app(exhibits, ticket), bound, ready, seconds=2))


def _listen(port: int | None) -> socket.socket:
    """At `port`, or at the usual one if that is free."""
    try:
        return listen("127.0.0.1", PORT if port is None else port)
    except UserError:
        if port is not None:
            raise
        return listen("127.0.0.1", 0)


@contextmanager
def opened(run: Path, builder: str | None, data_dir: Path | None) -> Iterator[None]:
    """Inside the `with`, and behind it until Ctrl-C, `convlens open` shows `run` from a process of its own."""
    require_serve()
    command = [sys.executable, "-m", "convlens", "open", str(run)]
    command += ["-m", builder] if builder else []
    command += ["--data-dir", str(data_dir)] if data_dir else []
    alone = {name: value for name, value in os.environ.items() if name not in TOGETHER}
    page = subprocess.Popen(command, env=alone)  # noqa: S603 - ourselves
    try:
        yield
        with suppress(KeyboardInterrupt):
            print("The page stays open; Ctrl-C ends it.", file=sys.stderr, flush=True)
            page.wait()
    finally:
        page.terminate()
        page.wait()
