"""download and files: against real servers on this machine, real certificates, and a disk that really refuses."""

import contextlib
import errno
import gzip
import hashlib
import os
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import trustme

from convlens.data import load
from convlens.datasets import MNIST
from convlens.download import cache_folder, download
from convlens.errors import FAILED, USAGE
from convlens.files import disk_error, write_json, write_whole
from convlens.recipe import Recipe
from refusals import refused

BODY = np.random.default_rng(0).bytes(200_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
HTML = b"\n <!DOCTYPE html><html><body>Please log in</body></html>"


class Site:
    """A web server on 127.0.0.1. `answers` maps a path to (status, body, the length that it claims)."""

    def __init__(self, answers: dict[str, tuple[int, bytes, int]], tls: ssl.SSLContext | None) -> None:
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                status, body, length = answers.get(self.path, (404, b"no such file", 12))
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


Serve = Callable[..., Site]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(body, ...) starts a server that has `body` as /data.bin."""
    sites: list[Site] = []

    def start(
        body: bytes = BODY,
        status: int = 200,
        length: int | None = None,
        tls: ssl.SSLContext | None = None,
        files: dict[str, bytes] | None = None,
    ) -> Site:
        answers = {"/data.bin": (status, body, len(body) if length is None else length)}
        answers |= {f"/{name}": (200, data, len(data)) for name, data in (files or {}).items()}
        sites.append(Site(answers, tls))
        return sites[-1]

    yield start
    for site in sites:
        site.close()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no certificates of whoever runs the tests."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CONVLENS_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def closed() -> str:
    """An address where nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/"


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Inside, the operating system refuses to write a file beyond `limit` bytes. (Python ignores the signal for it.)"""
    resource = pytest.importorskip("resource", reason="a full disk is played by POSIX's limit on the size of a file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that may be read and not written to, and a process to which this applies (root gives up its rights)."""
    if os.name != "posix":
        pytest.skip("folders are forbidden by POSIX's permissions")
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), os.geteuid() == 0
        folder.chmod(0o555)
        if root:
            os.seteuid(65_534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


failed = partial(refused, exit_code=FAILED)


def nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


# What goes well -------------------------------------------------------------------------------------------------


def test_whole_and_only_once(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site, folder = serve(), tmp_path / "new" / "cache"
    path = download("data.bin", SHA256, [site.url], folder)
    assert path == folder / "data.bin"
    assert path.read_bytes() == BODY
    assert list(folder.iterdir()) == [path]
    assert site.asked == ["/data.bin"]
    said = capsys.readouterr()
    assert said.out == ""
    assert f"downloading {site.url}data.bin" in said.err

    assert download("data.bin", SHA256, [site.url], folder) == path
    assert site.asked == ["/data.bin"]
    assert capsys.readouterr() == ("", "")


def test_a_damaged_file_in_the_cache_is_replaced(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(BODY[:1000])
    assert download("data.bin", SHA256, [serve().url], tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("broken", ["404", "500", "closed", "html", "other file", "cut off", "certificate"])
def test_the_second_mirror_stands_in(
    serve: Serve, tmp_path: Path, closed: str, tls: ssl.SSLContext, broken: str
) -> None:
    first = {
        "404": lambda: serve(status=404).url,
        "500": lambda: serve(status=500).url,
        "closed": lambda: closed,
        "html": lambda: serve(HTML).url,
        "other file": lambda: serve(BODY[:-1] + b"x").url,
        "cut off": lambda: serve(BODY[:-1], length=len(BODY)).url,
        "certificate": lambda: serve(tls=tls).url,
    }[broken]()
    second = serve()
    assert download("data.bin", SHA256, [first, second.url], tmp_path).read_bytes() == BODY
    assert second.asked == ["/data.bin"]
    assert list(tmp_path.iterdir()) == [tmp_path / "data.bin"]


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONVLENS_CACHE", "~/there")
    assert cache_folder() == tmp_path / "there"
    monkeypatch.delenv("CONVLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "convlens"


def test_a_data_set_is_downloaded_once(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    files, hashes = {}, []
    for gz, _ in MNIST.downloads:
        shape = (30 if "train" in gz else 20, *((28, 28) if "images" in gz else ()))
        array = rng.integers(0, 10, shape, dtype=np.uint8)
        head = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *shape)
        files[gz] = gzip.compress(head + array.tobytes())
        hashes.append((gz, hashlib.sha256(files[gz]).hexdigest()))
    site = serve(files=files)
    spec = replace(MNIST, counts=(30, 20), mirrors=(site.url,), downloads=tuple(hashes))
    recipe = Recipe().override({"data.val": 0.0})
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path))

    first = load(spec, recipe)
    assert len(first.train) == 30
    assert sorted(site.asked) == sorted(f"/{gz}" for gz in files)
    assert {p.name for p in (tmp_path / "MNIST" / "raw").iterdir()} == set(files)
    assert load(spec, recipe).sha256 == first.sha256
    assert len(site.asked) == 4


# What goes wrong ------------------------------------------------------------------------------------------------


def test_web_page_instead_of_the_file(serve: Serve, tmp_path: Path) -> None:
    site = serve(HTML)
    failed(
        lambda: download("data.bin", SHA256, [site.url], tmp_path),
        "could not download data.bin",
        "a web page came back",
        f"open {site.url}data.bin in a browser",
        f"put the file into {tmp_path} yourself",
    )
    nothing_left(tmp_path)


def test_wrong_hash(serve: Serve, tmp_path: Path) -> None:
    failed(
        lambda: download("data.bin", SHA256, [serve(b"x" * 1000).url], tmp_path),
        "could not download data.bin",
        "sha256 differs",
        "try again later",
        f"put the file into {tmp_path} yourself",
    )
    nothing_left(tmp_path)


@pytest.mark.parametrize("sent", [0, 1, 150_000])
def test_connection_that_breaks_off(serve: Serve, tmp_path: Path, sent: int) -> None:
    failed(
        lambda: download("data.bin", SHA256, [serve(BODY[:sent], length=len(BODY)).url], tmp_path),
        "could not download data.bin",
        "the connection broke off; try again",
        f"put the file into {tmp_path} yourself",
    )
    nothing_left(tmp_path)


def test_not_found_anywhere(serve: Serve, tmp_path: Path) -> None:
    sites = [serve(status=500), serve(status=404)]
    failed(
        lambda: download("data.bin", SHA256, [site.url for site in sites], tmp_path),
        "could not download data.bin",
        "no mirror has it",
        "404",
        "try again later",
        f"put the file into {tmp_path} yourself",
    )
    assert [site.asked for site in sites] == [["/data.bin"]] * 2
    nothing_left(tmp_path)


def test_offline(tmp_path: Path, closed: str) -> None:
    failed(
        lambda: download("data.bin", SHA256, [closed, closed], tmp_path),
        "could not download data.bin",
        "no mirror can be reached (offline?)",
        "--data-dir or CONVLENS_DATA",
        f"put the file into {tmp_path} yourself",
    )
    nothing_left(tmp_path)


def test_a_proxy_that_is_no_address(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", "http://")
    message = failed(lambda: download("data.bin", SHA256, [closed], tmp_path), "no mirror can be reached")
    assert "sha256" not in message
    nothing_left(tmp_path)


# Certificates ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_certificate(
    serve: Serve, tls: ssl.SSLContext, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, folder = serve(tls=tls), tmp_path / "cache"
    failed(
        lambda: download("data.bin", SHA256, [site.url], folder),
        "could not download data.bin",
        "'Install Certificates.command'",
        "SSL_CERT_FILE",
        f"put the file into {folder} yourself",
    )
    nothing_left(folder)
    assert site.asked == []

    bundle = tmp_path / "company.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert download("data.bin", SHA256, [site.url], folder).read_bytes() == BODY


@pytest.mark.parametrize("wrong", ["no certificate", "another authority's"])
def test_ssl_cert_file_that_does_not_help(
    serve: Serve, tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    bundle, folder = tmp_path / "company.pem", tmp_path / "cache"
    bundle.write_bytes(b"hello" if wrong == "no certificate" else trustme.CA().cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    failed(lambda: download("data.bin", SHA256, [serve(tls=tls).url], folder), "certificate", "SSL_CERT_FILE")
    nothing_left(folder)


def test_ssl_cert_file_that_does_not_exist(
    serve: Serve, tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    failed(
        lambda: download("data.bin", SHA256, [serve(tls=tls).url], folder),
        f"SSL_CERT_FILE names {tmp_path / 'gone.pem'}, which does not exist; correct it or unset it",
        exit_code=USAGE,
    )
    nothing_left(folder)


# The disk -------------------------------------------------------------------------------------------------------


def test_download_onto_a_full_disk(serve: Serve, tmp_path: Path) -> None:
    urls = [serve().url, serve().url]
    with full_disk(64_000):
        failed(
            lambda: download("data.bin", SHA256, urls, tmp_path),
            f"no room left to write {tmp_path / 'data.bin'}",
            "free some space, or give another folder",
        )
    nothing_left(tmp_path)
    assert download("data.bin", SHA256, urls, tmp_path).read_bytes() == BODY


def test_download_into_a_file(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am no folder")
    site = serve()
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        failed(
            lambda folder=folder: download("data.bin", SHA256, [site.url], folder),
            f"cannot write to {folder}",
            "give another folder",
            exit_code=USAGE,
        )
    assert (tmp_path / "file").read_text() == "I am no folder"
    assert site.asked == []


def test_download_into_a_forbidden_folder(serve: Serve, forbidden: Path) -> None:
    failed(
        lambda: download("data.bin", SHA256, [serve().url], forbidden),
        f"cannot write to {forbidden / 'data.bin'} (Permission denied)",
        "give another folder or change its permissions",
        exit_code=USAGE,
    )
    nothing_left(forbidden)


def test_write_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    write_whole(path, b"old\r\n\xff")
    assert path.read_bytes() == b"old\r\n\xff"
    write_whole(path, "new: é 数\n")
    assert path.read_bytes() == "new: é 数\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_takes_over_what_a_killed_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    (tmp_path / ".report.txt.part").write_bytes(b"half a file, and longer than the next")
    write_whole(path, "short")
    assert path.read_text() == "short"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_meets_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, met = tmp_path / "report.txt", []
    write_whole(path, "old")
    fsync = os.fsync

    def look(descriptor: int) -> None:
        met.append(path.read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_whole(path, "new")
    assert met == ["old"]  # all is on the disk before the name points to it
    assert path.read_text() == "new"


@pytest.mark.parametrize("data", [BODY, "é" * 50_000], ids=["bytes", "text"])
def test_write_whole_on_a_full_disk(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "weights.bin"
    write_whole(path, b"old")
    with full_disk(64_000):
        failed(lambda: write_whole(path, data), f"no room left to write {path}", "what was saved before is whole")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_into_a_forbidden_folder(forbidden: Path) -> None:
    failed(lambda: write_whole(forbidden / "a", "b"), f"cannot write to {forbidden / 'a'}", exit_code=USAGE)
    nothing_left(forbidden)


def test_write_whole_where_no_folder_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am no folder")
    failed(lambda: write_whole(tmp_path / "file" / "a", "b"), "cannot write to", tmp_path / "file/a", exit_code=USAGE)
    failed(lambda: write_whole(tmp_path / "none" / "a", "b"), f"cannot write {tmp_path / 'none' / 'a'}")
    (tmp_path / "folder").mkdir()
    failed(lambda: write_whole(tmp_path / "folder", "b"), f"cannot write {tmp_path / 'folder'}")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def test_write_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"名": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "名": [\n    1,\n    2.5,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_text(encoding="utf-8").startswith('{\n  "名"')


@pytest.mark.parametrize(
    ("number", "words", "exit_code"),
    [
        (errno.ENOSPC, "no room left", FAILED),
        (errno.EDQUOT, "no room left", FAILED),
        (errno.EFBIG, "no room left", FAILED),
        (errno.EROFS, "cannot write to", USAGE),
        (errno.EACCES, "cannot write to", USAGE),
        (errno.ENOTDIR, "cannot write to", USAGE),
        (errno.EIO, "cannot write", FAILED),
    ],
)
def test_disk_error(number: int, words: str, exit_code: int) -> None:
    error = disk_error(OSError(number, os.strerror(number)), Path("there"))
    assert error.exit_code == exit_code
    assert str(error).startswith(words)
    assert "there" in str(error)
    assert os.strerror(number) in str(error)
