"""From a list of addresses to one verified file in the cache: pooch does the work, this words its failures."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import FAILED, UserError
from .files import disk_error


def cache_folder() -> Path:
    """`CONVLENS_CACHE`, else the platform's cache folder for the user."""
    import platformdirs

    chosen = os.environ.get("CONVLENS_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("convlens", appauthor=False))


def download(name: str, sha256: str, mirrors: Sequence[str], folder: Path) -> Path:
    """Fetch `name` from the first mirror that has it whole, check its sha256, and return its path in `folder`.

    Nothing half-written is ever left under the final name. Raises UserError with one sentence: offline, certificate,
    an HTML page instead of the file, a wrong hash, a folder that cannot be written to, a full disk.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it would repeat what the bar says
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    troubles: list[tuple[str, Exception]] = []
    for mirror in mirrors:
        try:
            pooch.retrieve(mirror + name, f"sha256:{sha256}", fname=name, path=folder, downloader=_fetch)
            return target
        except PermissionError as error:  # pooch's own has no errno, but it was raised from one that has
            raise disk_error(error.__cause__ if isinstance(error.__cause__, OSError) else error, target) from error
        except OSError as error:
            if _is_disk(error):
                raise disk_error(error, target) from error
            troubles.append((mirror, error))
        except ValueError as error:  # pooch: the hash does not match
            troubles.append((mirror, error))
    raise _sentence(name, troubles, folder)


def _fetch(url: str, output_file: str, pooch_object: Any) -> None:
    """pooch's own HTTP downloader with rich's progress bar, and a look at the first bytes."""
    import pooch
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(url.rsplit("/", 1)[-1], total=None)
        if bar.disable:
            console.print(f"downloading {url}", highlight=False, soft_wrap=True)
        bundle = os.environ.get("SSL_CERT_FILE")  # requests itself only knows REQUESTS_CA_BUNDLE
        if bundle and not Path(bundle).exists():
            raise UserError(f"SSL_CERT_FILE names {bundle}, which does not exist; correct it or unset it")
        opened: list[Any] = []  # pooch leaves a response open where the server says no or the disk is full
        hooks = {"response": lambda response, *_, **__: opened.append(response)}
        fetch = pooch.HTTPDownloader(progressbar=_Bar(bar, task), timeout=30, verify=bundle or True, hooks=hooks)
        try:
            fetch(url, output_file, pooch_object)
        finally:
            for response in opened:
                response.close()
    with Path(output_file).open("rb") as file:
        start = file.read(256)
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise ValueError("HTML")


class _Bar:
    """What pooch asks of a progress bar, said to rich."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task, self.total = progress, task, 0

    def update(self, amount: int) -> None:
        self._progress.update(self._task, advance=amount, total=self.total or None)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        pass


def _is_disk(error: OSError) -> bool:
    """Whether the machine's own disk refused, rather than the network (requests' errors are OSErrors without errno)."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOTDIR)


def _sentence(name: str, troubles: list[tuple[str, Exception]], folder: Path) -> UserError:
    """One sentence for the failure that the user can do most about."""
    import requests

    by_hand = f"or put the file into {folder} yourself"
    errors = [error for _, error in troubles]
    if any(isinstance(e, requests.exceptions.SSLError) for e in errors):
        return UserError(
            f"could not download {name}: the server's certificate was not accepted; on macOS run 'Install "
            "Certificates.command' from Python's folder in Applications, behind a company proxy set SSL_CERT_FILE "
            f"to its certificate, {by_hand}",
            FAILED,
        )
    if any(str(e) == "HTML" for e in errors):
        return UserError(
            f"could not download {name}: a web page came back instead of the file (a login or proxy page?); open "
            f"{troubles[-1][0] + name} in a browser to see it, {by_hand}",
            FAILED,
        )
    if any(isinstance(e, ValueError) and not isinstance(e, OSError) for e in errors):  # some of requests' are both
        return UserError(
            f"could not download {name}: what came back is not the original file (its sha256 differs); try again "
            f"later, {by_hand}",
            FAILED,
        )
    status = [e.response.status_code for e in errors if isinstance(e, requests.HTTPError) and e.response is not None]
    if status:
        return UserError(
            f"could not download {name}: no mirror has it (the last that answered said {status[-1]}); try again later, "
            f"{by_hand}",
            FAILED,
        )
    if any(
        isinstance(e, (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError))
        for e in errors
    ):
        return UserError(f"could not download {name}: the connection broke off; try again, {by_hand}", FAILED)
    return UserError(
        f"could not download {name}: no mirror can be reached (offline?); connect, point --data-dir or CONVLENS_DATA "
        f"at a folder that has it, {by_hand}",
        FAILED,
    )
