"""`convlens serve`, a real process asked by a real client: the Predictor's numbers for everybody, bounds on everything,
one sentence for what it refuses, and a clean end."""

from __future__ import annotations

import asyncio
import base64
import builtins
import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import httpx
import jsonschema
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from convlens import Predictor, wire
from convlens.app import make_app
from convlens.batching import Full
from convlens.formats import open_shipped
from convlens.guard import Guard, Limits
from convlens.meters import Meters
from convlens.modelfile import ModelFile, load_model, save_model
from convlens.predict import Prediction
from convlens.service import Pool, Service, disagreement
from served import CLASSES, Server, digits, encoded, save_served, zeros

SECRET = "0123456789abcdef-secret"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server(model, "--max-bytes", 300_000, "--max-pixels", 90_000, "--max-images", 8, "--timeout", 4) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.stderr


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return digits(24)


@pytest.fixture(scope="module")
def rows(model: Path, images: np.ndarray) -> list[Prediction]:
    """What the library says."""
    return list(Predictor.load(model).answers(images, top=3))


def agree(found: dict[str, object], row: Prediction, top: int = 1) -> None:
    assert found["label"] == row.label
    assert found["probability"] == pytest.approx(row.probability, abs=1e-6)
    assert found["energy"] == pytest.approx(row.energy, abs=1e-5)
    assert found["unusual"] == row.unusual
    assert [name for name, _ in found["top"]] == [name for name, _ in row.top[:top]]
    assert [p for _, p in found["top"]] == pytest.approx([p for _, p in row.top[:top]], abs=1e-6)
    assert found["error"] == ""


def refused(response: httpx.Response, status: int, *words: str) -> str:
    """It has this status and one sentence with all the words, and nothing of the machine."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    sentence = response.json()["error"]
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    assert not any(part in response.text for part in ("/tmp", "/home", "site-packages", ".py", "Traceback"))
    return sentence


# What is answered ------------------------------------------------------------------------------------------------


def test_every_kind_of_body_gives_the_predictors_rows(
    server: Server, images: np.ndarray, rows: list[Prediction]
) -> None:
    assert len({row.label for row in rows}) > 1
    assert {row.unusual for row in rows} == {True, False}
    for image, row in zip(images[:4], rows, strict=False):
        found = server.predict(encoded(image), params={"top": 3}).json()["predictions"]
        assert len(found) == 1
        agree(found[0], row, 3)
    files = [("images", (f"{i}.png", encoded(image), "image/png")) for i, image in enumerate(images[:5])]
    found = server.client.post("/v1/predict", files=files, data={"top": "2"}).json()["predictions"]
    assert [each["file"] for each in found] == [f"{i}.png" for i in range(5)]
    for each, row in zip(found, rows, strict=False):
        agree(each, row, 2)
    texts = [base64.b64encode(encoded(image)).decode() for image in images[:5]]
    texts[1] = "data:image/png;base64," + texts[1]
    found = server.client.post("/v1/predict", json={"images": texts, "top": 1}).json()["predictions"]
    for each, row in zip(found, rows, strict=False):
        agree(each, row)


def test_pictures_that_are_resized_come_through_the_threads_and_are_the_same(
    server: Server, model: Path, images: np.ndarray, tmp_path: Path
) -> None:
    data = {kind: encoded(images[0], kind, (300, 200)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}
    paths = [tmp_path / f"a.{kind}" for kind in data]
    for path, content in zip(paths, data.values(), strict=True):
        path.write_bytes(content)
    for content, row in zip(data.values(), Predictor.load(model).predict(paths), strict=True):
        assert not row.error
        agree(server.predict(content, "application/octet-stream").json()["predictions"][0], row)


def test_below_the_threshold_the_label_is_unknown(server: Server, images: np.ndarray, rows: list[Prediction]) -> None:
    middle = float(np.median([row.probability for row in rows]))
    labels = [
        server.predict(encoded(image), params={"threshold": middle}).json()["predictions"][0]["label"]
        for image in images[:8]
    ]
    assert labels == [row.label if row.probability >= middle else "unknown" for row in rows[:8]]
    assert "unknown" in labels


def test_a_bad_picture_among_others_is_its_own_row(server: Server, images: np.ndarray, rows: list[Prediction]) -> None:
    good = encoded(images[0])
    files = [("images", (name, data)) for name, data in (("a", good), ("b", good[:60]), ("c", b"?"), ("d", good))]
    found = server.client.post("/v1/predict", files=files).json()["predictions"]
    agree(found[0], rows[0])
    agree(found[3], rows[0])
    assert [each["file"] for each in found] == ["a", "b", "c", "d"]
    for each, word in ((found[1], "damaged"), (found[2], "not a picture")):
        assert word in each["error"]
        assert each["label"] == ""
        assert each["probability"] is None
    refused(server.predict(good[:60]), 422, "damaged")


def test_many_clients_at_once_get_their_own_answers_in_batches(
    server: Server, images: np.ndarray, rows: list[Prediction]
) -> None:
    def ask(i: int) -> list[dict[str, object]]:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            kind = {"content-type": "image/png"}
            answers = [
                client.post(
                    "/v1/predict", content=encoded(images[(i + j) % 24]), headers=kind, params={"top": 1 + i % 3}
                )
                for j in range(12)
            ]
        return [answer.json()["predictions"][0] for answer in answers]

    before = server.client.get("/metrics").text
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(ask, range(16)))
    for i, answers in enumerate(told):
        for j, found in enumerate(answers):
            agree(found, rows[(i + j) % 24], 1 + i % 3)
    after = server.client.get("/metrics").text
    pictures, batches = (
        metric(after, f"convlens_batch_size_{kind}") - metric(before, f"convlens_batch_size_{kind}")
        for kind in ("sum", "count")
    )
    assert pictures == 192
    assert batches < 192


def metric(text: str, name: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_what_is_served_and_counted_is_told(server: Server, model: Path) -> None:
    told = server.client.get("/v1/model").json()
    assert told["classes"] == list(CLASSES)
    assert told["input"] == {"size": [28, 28], "channels": 1, "resize": "crop"}
    assert told["metrics"] == {"test_accuracy": 0.5}
    assert told["calibration"]["temperature"] == 1.5
    assert told["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert str(model.parent) not in json.dumps(told)
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").json() == {"status": "ready"}
    before = (
        metric(server.client.get("/metrics").text, 'convlens_requests_total{route="/v1/predict",status="415"}')
        if (server.predict(b"?", "text/plain").status_code == 415)
        else 0
    )
    server.predict(b"?", "text/plain")
    after = server.client.get("/metrics")
    assert after.headers["content-type"].startswith("text/plain")
    assert metric(after.text, 'convlens_requests_total{route="/v1/predict",status="415"}') == before + 1


def test_every_answer_carries_its_id_and_what_keeps_browsers_safe(server: Server, images: np.ndarray) -> None:
    for response in (
        server.predict(encoded(images[0])),
        server.client.get("/nothing"),
        server.client.get("/openapi.json"),
    ):
        headers = response.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert len(headers["x-request-id"]) == 16
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    named = server.client.get("/healthz", headers={"x-request-id": "mine-7"})
    assert named.headers["x-request-id"] == "mine-7"
    forged = server.client.get("/healthz", headers={"x-request-id": 'a"b' * 9})
    assert forged.headers["x-request-id"] != 'a"b' * 9


def test_why_is_drawn_as_a_picture(server: Server, images: np.ndarray) -> None:
    headers = {"content-type": "image/png"}
    ask = partial(server.client.post, "/v1/explain", content=encoded(images[0]), headers=headers)
    found = ask(params={"method": "saliency", "class": "dog", "against": "猫"}, timeout=120)
    if (
        found.status_code == 503
    ):  # the first one loads captum and matplotlib, which may take longer than is allowed here
        found = ask(params={"method": "saliency", "class": "dog", "against": "猫"})
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == "image/png"
    assert found.content[:8] == b"\x89PNG\r\n\x1a\n"
    refused(ask(params={"method": "saliencey"}), 422, "saliency")
    refused(ask(params={"class": "dgo"}), 422, "'dog'")
    refused(ask(params={"layer": "nothing"}), 422)
    refused(ask(params={"clas": "dog"}), 422, "'class'")
    refused(server.client.post("/v1/explain", content=b"?", headers=headers), 422, "not a picture")


# What is refused -------------------------------------------------------------------------------------------------


def test_bad_requests_are_refused_with_one_sentence(server: Server, images: np.ndarray) -> None:
    good = encoded(images[0])
    text = base64.b64encode(good).decode()
    post = partial(server.client.post, "/v1/predict")
    refused(server.predict(b""), 400, "no picture")
    refused(server.predict(b"?" * 100), 422, "not a picture")
    refused(server.predict(good, "text/html"), 415, "text/html")
    refused(post(content=good), 415, "none was given")
    refused(server.predict(zeros((1024, 640))), 422, "1024 x 640", "90,000")
    refused(server.predict(good, params={"top": 0}), 422, "top", "'0'")
    refused(server.predict(good, params={"top": "many"}), 422, "top")
    refused(server.predict(good, params={"threshold": "nan"}), 422, "threshold")
    refused(server.predict(good, params={"tpo": 3}), 422, "'top'")
    refused(post(json=[1]), 400, "images")
    refused(post(json={"images": "x"}), 400, "list")
    refused(post(json={"images": []}), 400, "no picture")
    refused(post(json={"images": [7]}), 400, "images[0]", "base64")
    refused(post(json={"images": [text, "§"]}), 400, "images[1]", "base64")
    refused(post(json={"images": [text], "tpo": 3}), 400, "'top'")
    refused(post(json={"images": [text], "top": True}), 422, "top")
    refused(post(json={"images": [text], "top": "3"}), 422, "top is a number", "'3'")
    refused(post(json={"images": [text], "threshold": "x"}), 422, "threshold")
    refused(post(json={"images": [text], "top": 1}, params={"top": 2}), 422, "twice")
    refused(post(json={"images": [text] * 9}), 413, "8")
    refused(server.predict(b'{"images": [', "application/json"), 400, "not JSON")
    refused(server.predict(b"[" * 100_000, "application/json"), 413, "parts")
    refused(server.predict(b"\xff\xfe", "application/json"), 400, "not JSON")
    refused(post(files=[("images", (str(i), good)) for i in range(9)]), 413, "8")
    refused(post(files={"images": ("a", good)}, data={"tpo": "1"}), 400, "'top'")
    refused(server.predict(b"--x\r\n", "multipart/form-data; boundary=x"), 400, "cut off")
    refused(server.predict(b"nothing", "multipart/form-data; boundary=x"), 400, "form")
    refused(server.predict(good, "multipart/form-data"), 400, "boundary")
    refused(server.predict(b"--x--\r\n", "multipart/form-data; boundary=x"), 400)
    refused(server.client.get("/v1/predict"), 405)
    refused(server.client.get("/../../etc/passwd"), 404)
    refused(server.client.get("/v1/model/"), 404)
    for path in ("/healthz", "/v1/model", "/openapi.json"):
        answer = server.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == server.client.get(path).headers["content-length"]
    assert server.client.head("/v1/predict").status_code == 405
    zipped = server.client.post("/v1/predict", content=good, headers={"content-encoding": "gzip"})
    refused(zipped, 415, "Content-Encoding")


def test_bodies_are_bounded_whether_their_size_is_told_or_not(server: Server) -> None:
    refused(server.predict(bytes(300_001)), 413, "300,000")
    parts = (bytes(50_000) for _ in range(7))
    refused(server.client.post("/v1/predict", content=parts, headers={"content-type": "image/png"}), 413, "300,000")
    refused(server.predict(bytes(300_000)), 422, "not a picture")
    huge = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    began = time.perf_counter()
    assert server.raw(huge + bytes(1000)).startswith(b"HTTP/1.1 413")
    assert time.perf_counter() - began < 4


@pytest.mark.slow
def test_slow_ones_are_closed(server: Server, images: np.ndarray, rows: list[Prediction]) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(head)
        began, answer = time.perf_counter(), b""
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.1):
                try:
                    slow.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        agree(server.predict(encoded(images[0])).json()["predictions"][0], rows[0])  # others are served
        while part := slow.recv(4096):
            answer += part
            if b"}" in part:
                break
        stop.set()
        thread.join()
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].endswith("within 4 seconds")
    assert 3 < time.perf_counter() - began < 20


@pytest.mark.slow
def test_headers_that_do_not_end_are_closed(server: Server) -> None:
    began = time.perf_counter()
    assert server.raw(b"GET /healthz HTTP/1.1\r\nHost: local").startswith(b"HTTP/1.1 408")
    assert 9 < time.perf_counter() - began < 25


def test_what_is_no_http_is_refused_in_json(server: Server) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        head, _, body = server.raw(nonsense).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"error" in body
        assert json.loads(body)
    name = 'convlens_requests_total{route="other",status="400"}'
    assert metric(server.client.get("/metrics").text, name) >= 3  # they are counted, too
    long = server.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 65_600)
    assert long.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


def test_hosts_and_pages_of_others_are_refused(server: Server) -> None:
    get = partial(server.client.get, "/healthz")
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", "10.0.0.7", "[::2]"):
        refused(get(headers={"host": host}), 421, "Host")
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:8000"):
        assert get(headers={"host": host}).status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        refused(get(headers={"origin": origin}), 403, "another site")
    assert get(headers={"origin": server.url}).status_code == 200
    assert server.raw(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")


def test_bits_that_flipped_end_in_a_row_or_a_sentence(server: Server, images: np.ndarray) -> None:
    draw, seen = np.random.default_rng(5), set()
    for i in range(60):
        kind = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")[i % 6]
        data = bytearray(encoded(images[i % 24], kind, (40, 30)))
        for place in draw.integers(0, len(data), 3):
            data[place] ^= 1 << int(draw.integers(8))
        response = server.predict(bytes(data), "application/octet-stream")
        seen.add(response.status_code)
        if response.status_code != 200:
            refused(response, 422)
    assert seen == {200, 422}


# Inside one process ----------------------------------------------------------------------------------------------


@contextmanager
def local(
    model: Path, limits: Limits | None = None, file: ModelFile | None = None
) -> Iterator[tuple[httpx.Client, Service]]:
    """The app in a thread of this process, for what a server cannot be made to do from outside."""
    app = make_app(Predictor.load(model), limits or Limits(log=False), file)
    with running(app) as server, httpx.Client(base_url=f"http://127.0.0.1:{port(server)}", timeout=60) as client:
        yield client, app.state.service


@contextmanager
def running(app: FastAPI, protocol: type = wire.BoundedProtocol) -> Iterator[uvicorn.Server]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, ws="none", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield server
    server.should_exit = True
    thread.join()


def port(server: uvicorn.Server) -> int:
    return server.servers[0].sockets[0].getsockname()[1]


def until(reached: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(params=["httptools", pytest.param("h11", marks=pytest.mark.slow)])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """wire.py, as it is where httptools is installed and where not, with short times."""
    if request.param == "httptools":
        pytest.importorskip("httptools")
    else:
        monkeypatch.setitem(sys.modules, "uvicorn.protocols.http.httptools_impl", None)
    spec = importlib.util.spec_from_file_location("convlens.wire_again", wire.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert request.param.title().replace("tools", "Tools") in module.Protocol.__name__
    module.WRITE_SECONDS = module.CLOSE_SECONDS = module.HEADER_SECONDS = 0.4
    return module


def test_who_never_reads_is_closed(model: Path, protocol: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """As much unread as fills all buffers, and as little as only the server's."""
    token = Limits(log=False, token=SECRET)
    for limits, path, count in ((None, "openapi.json", 600), (token, "v1/model", 600), (None, "healthz", 30)):
        app = make_app(Predictor.load(model), limits or Limits(log=False))
        with running(app, protocol.BoundedProtocol) as server:
            lazy = []
            for _ in range(3):
                connection = socket.socket()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.connect(("127.0.0.1", port(server)))
                connection.settimeout(0.5)
                with suppress(OSError):  # nor does the server read on
                    connection.sendall(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode() * count)
                lazy.append(connection)
            until(lambda: len(server.server_state.connections) == 0)
            until(lambda: not server.server_state.tasks)
            for connection in lazy:
                connection.close()
    assert "Traceback" not in caplog.text  # nor is what could not be answered an error of ours
    assert "failed" not in caplog.text


def test_both_protocols_answer_and_refuse(model: Path, images: np.ndarray, protocol: ModuleType) -> None:
    app = make_app(Predictor.load(model), Limits(log=False))
    with running(app, protocol.BoundedProtocol) as server:
        address = ("127.0.0.1", port(server))
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
            sent = client.post("/v1/predict", content=encoded(images[0]), headers={"content-type": "image/png"})
            assert sent.status_code == 200
            for nonsense, status in ((b"GET\r\n\r\n", "400"), (b"GET /healthz HTTP/1.1\r\nHost: ", "408")):
                with socket.create_connection(address, timeout=20) as connection:
                    connection.sendall(nonsense)
                    assert connection.recv(65_536)[9:12].decode() == status
                name = f'convlens_requests_total{{route="other",status="{status}"}}'
                assert metric(client.get("/metrics").text, name) == 1


def test_who_hangs_up_has_no_turn(model: Path, images: np.ndarray) -> None:
    gate, sizes = threading.Event(), list[int]()
    with local(model) as (client, service):
        answers = service.predictor.answers

        def waiting(pixels: np.ndarray, top: int = 1) -> Iterator[Prediction]:
            sizes.append(len(pixels))
            assert gate.wait(30)
            return answers(pixels, top)

        service.predictor.answers = waiting
        post = partial(client.post, "/v1/predict", headers={"content-type": "image/png"})
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(post, content=encoded(images[0]))
            until(lambda: len(sizes) == 1)
            body = encoded(images[1])
            head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            with socket.create_connection(("127.0.0.1", client.base_url.port)) as leaving:
                leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                until(lambda: service.waiting() == 1)
                assert metric(client.get("/metrics").text, "convlens_queue_depth") == 1
            until(lambda: service.waiting() == 0)
            assert metric(client.get("/metrics").text, "convlens_queue_depth") == 0
            staying = pool.submit(post, content=encoded(images[2]))
            until(lambda: service.waiting() == 1)
            gate.set()
            assert [each.result().status_code for each in (first, staying)] == [200, 200]
    assert sizes == [1, 1]


def test_a_picture_that_lies_about_its_size_is_not_decoded_between_the_answers(model: Path, images: np.ndarray) -> None:
    """The decoder believes the last header; a tiny one before it is no reason to hold all others up."""
    service = Service(Predictor.load(model), Limits(), Meters())
    liar = zeros((8, 8), (1500, 1490))
    assert len(liar) < 4096
    assert service._at_once(liar) is None
    assert service._at_once(zeros((1500, 1490))) is None
    assert np.array_equal(service._at_once(encoded(images[0])), images[0])
    with local(model, Limits(log=False, pixels=90_000)) as (client, _):
        answer = client.post("/v1/predict", content=liar, headers={"content-type": "image/png"})
        refused(answer, 422, "1500 x 1490", "90,000")


def test_what_a_thread_works_on_counts_until_it_is_done() -> None:
    pool, gate, seen = Pool(1, 3), threading.Event(), list[bytes]()

    def work(thing: bytes) -> None:
        seen.append(thing)
        assert gate.wait(10)

    futures = pool.submit(work, [b"a", b"b"])
    until(lambda: seen == [b"a"])
    with pytest.raises(Full):
        pool.submit(work, [b"c", b"d"])
    assert [future.cancel() for future in futures] == [False, True]
    assert pool.taken == 1
    assert pool._threads._work_queue.qsize() == 1  # the cancelled one, whose box is empty
    gate.set()
    until(lambda: pool.taken == 0)
    assert seen == [b"a"]
    pool.close()


def test_what_speaks_no_http_is_not_let_in() -> None:
    sent: list[object] = []

    async def app(*_: object) -> None:
        raise AssertionError

    async def send(message: object) -> None:
        sent.append(message)

    asyncio.run(Guard(app, Limits(), Meters())({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_openapi_document_is_sound(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["token"]["type"] == "http"
    check = jsonschema.Draft202012Validator
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert all(name in schemes for way in operation.get("security", ()) for name in way)
            assert {"413", "415", "421", "503"} <= set(operation["responses"])
            schemas = [parameter["schema"] for parameter in operation.get("parameters", ())]
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for content in (each for body in bodies for each in body.get("content", {}).values()):
                schemas.append(content["schema"])
                if "example" in content and path != "/v1/model":
                    check(content["schema"]).validate(content["example"])
            for schema in schemas:
                check.check_schema(schema)
    for path, most in (("/v1/predict", 8), ("/v1/explain", 1)):
        taken = document["paths"][path]["post"]["requestBody"]["content"]
        assert {"image/*", "application/octet-stream", "application/json", "multipart/form-data"} <= set(taken)
        for kind in ("application/json", "multipart/form-data"):
            assert taken[kind]["schema"]["properties"]["images"]["maxItems"] == most


def test_an_error_of_ours_says_nothing_of_the_machine(
    model: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with local(model) as (client, service):

        def broken(_images: np.ndarray, top: int = 1) -> Iterator[Prediction]:
            raise RuntimeError(f"a bug in {__file__} {top}")

        monkeypatch.setattr(service.predictor, "answers", broken)
        headers = {"content-type": "image/png"}
        sentence = refused(client.post("/v1/predict", content=encoded(images[0]), headers=headers), 500, "logged as")
        assert "a bug in" in caplog.text  # for us
        assert sentence.rpartition(" ")[2] in caplog.text
        monkeypatch.undo()
        assert client.post("/v1/predict", content=encoded(images[0]), headers=headers).status_code == 200


def test_uploads_never_touch_the_disk(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three megabytes as a form, as JSON and as they are, where every way to a file on the disk is closed."""
    opened: list[object] = []
    real = builtins.open, os.open

    def watched(path: object, *arguments: object, **settings: object) -> object:
        opened.append((path, arguments))
        return real[0](path, *arguments, **settings)  # type: ignore[call-overload]

    def forbidden(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("a file was made")

    large = encoded(np.random.default_rng(0).integers(0, 256, (1, 1800, 1800), dtype=np.uint8))
    assert len(large) > 3_000_000
    headers = {"content-type": "image/png"}
    with local(model) as (client, _):
        first = client.post("/v1/predict", content=large, headers=headers)  # what is imported late is there now
        assert first.status_code == 200
        for name in ("SpooledTemporaryFile", "TemporaryFile", "NamedTemporaryFile", "mkstemp"):
            monkeypatch.setattr(tempfile, name, forbidden)
        monkeypatch.setattr(builtins, "open", watched)
        answers = [
            client.post("/v1/predict", content=large, headers=headers),
            client.post("/v1/predict", files={"images": ("a.png", large)}),
            client.post("/v1/predict", json={"images": [base64.b64encode(large).decode()]}),
        ]
        monkeypatch.undo()
    for answer in answers:
        found = {**answer.json()["predictions"][0], "file": ""}
        assert found == first.json()["predictions"][0]
    assert not opened


def test_a_model_that_lost_its_numbers_is_not_served(tmp_path: Path, images: np.ndarray, convlens) -> None:
    changed = save_served(tmp_path, golden=0.01)
    with local(changed) as (client, _):
        refused(client.get("/readyz"), 503, "golden")
        headers = {"content-type": "image/png"}
        response = client.post("/v1/predict", content=encoded(images[0]), headers=headers)
        refused(response, 503, "golden")
        assert response.headers["retry-after"] == "1"
    silent = lambda images: (np.full((len(images), 4), np.nan, np.float32), None)  # noqa: E731 - beside its use
    assert "golden" in disagreement(Predictor(replace(open_shipped(changed), outputs=silent)))
    for flags in ((), ("--workers", "2")):  # and no address is printed
        result = convlens("serve", changed, "--port", "0", *flags)
        assert (result.returncode, result.stdout) == (1, "")
        assert "golden" in result.stderr
        assert result.stderr.count("\n") == 1


def test_without_the_network_in_torch_nothing_is_explained(model: Path, images: np.ndarray) -> None:
    headers = {"content-type": "image/png"}
    with local(model) as (client, _):
        refused(client.post("/v1/explain", content=encoded(images[0]), headers=headers), 409, "PyTorch")


def test_without_captum_it_says_what_to_install(
    model: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with local(model, file=load_model(model)) as (client, _):
        response = client.post("/v1/explain", content=encoded(images[0]), headers={"content-type": "image/png"})
        refused(response, 409, "convlens[explain]")


def test_a_full_queue_and_full_memory_answer_503(model: Path, images: np.ndarray) -> None:
    gate, entered = threading.Event(), threading.Event()
    with local(model, Limits(log=False, queue=2, batch=1, held=20_000)) as (client, service):
        predictor = service.predictor
        answers = predictor.answers

        def waiting(pixels: np.ndarray, top: int = 1) -> Iterator[Prediction]:
            entered.set()
            assert gate.wait(30)
            return answers(pixels, top)

        predictor.answers = waiting
        post = partial(client.post, "/v1/predict", headers={"content-type": "image/png"})
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(post, content=encoded(images[0]))
            assert entered.wait(30)
            others = [pool.submit(post, content=encoded(image)) for image in images[1:3]]
            while service.waiting() < 2:
                time.sleep(0.001)
            full = post(content=encoded(images[3]))
            memory = post(content=bytes(20_001))
            gate.set()
            assert [each.result().status_code for each in (first, *others)] == [200] * 3
    refused(full, 503, "wait")
    refused(memory, 503, "memory")
    assert full.headers["retry-after"] == "1"


def test_a_network_that_hangs_is_answered_for(model: Path, images: np.ndarray) -> None:
    gate = threading.Event()
    with local(model, Limits(log=False, seconds=0.3)) as (client, service):
        predictor = service.predictor
        answers = predictor.answers
        predictor.answers = lambda pixels, top=1: gate.wait(30) and answers(pixels, top)
        refused(
            client.post("/v1/predict", content=encoded(images[0]), headers={"content-type": "image/png"}),
            503,
            "within 0.3 seconds",
        )
        gate.set()


# Who may ask, and the end ----------------------------------------------------------------------------------------


def test_another_address_wants_a_token(model: Path, convlens) -> None:
    for flags, words in (
        (("--host", "0.0.0.0"), ("--token", "--insecure-no-auth")),
        (("--host", "192.0.2.1"), ("--token",)),
        (("--token", "short"), ("16",)),
        (("--token", "with a space in it"), ("16",)),
        (("--host", "192.0.2.1", "--insecure-no-auth"), ("cannot listen",)),
        (("--host", "a..b", "--token", SECRET), ("cannot listen", "no name of a host")),
        (("--timeout", "inf"), ("--timeout", "inf")),
    ):
        result = convlens("serve", model, *flags)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        for word in words:
            assert word in result.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = convlens("serve", model, "--port", taken.getsockname()[1])
    assert result.returncode == 2
    assert "--port 0" in result.stderr


def test_tokens_hosts_and_a_clean_end(model: Path, images: np.ndarray, rows: list[Prediction]) -> None:
    """With a token at all addresses; at SIGTERM what is under way is answered."""
    flags = ("--host", "0.0.0.0", "--allow-host", "Digits.Example", "--batch-wait", "1000", "--max-batch", "64")
    with Server(model, *flags, environment={"CONVLENS_TOKEN": SECRET}) as server:
        server.client = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)
        assert server.client.get("/healthz").status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer x"},
            {"authorization": f"bearer {SECRET}x"},
            {"authorization": ""},
        ):
            response = server.client.get("/v1/model", headers=headers)
            refused(response, 401, "token")
            assert response.headers["www-authenticate"] == "Bearer"
            refused(server.client.get("/metrics", headers=headers), 401)
        refused(server.predict(encoded(images[0])), 401)
        server.client.headers["authorization"] = f"Bearer {SECRET}"
        agree(server.predict(encoded(images[0])).json()["predictions"][0], rows[0])
        lower = {"authorization": f"bearer  {SECRET}"}  # RFC 9110: a scheme's name is of either case
        assert server.client.get("/v1/model", headers=lower).status_code == 200
        for host, status in (
            ("digits.example:80", 200),
            ("10.1.2.3", 200),
            ("[fe80::1]:9", 200),
            ("evil.example", 421),
        ):
            assert server.client.get("/v1/model", headers={"host": host}).status_code == status
        with ThreadPoolExecutor(24) as pool:
            clients = [httpx.Client(base_url=server.client.base_url, headers=server.client.headers) for _ in images]
            for client in clients:
                assert client.get("/healthz").status_code == 200  # connected
            kind = {"content-type": "image/png"}
            many = [("images", (str(i), encoded(images[0]))) for i in range(64)]
            assert server.client.post("/v1/predict", files=many).status_code == 200  # so 64 are waited for, a second
            told = [
                pool.submit(client.post, "/v1/predict", content=encoded(image), headers=kind, timeout=60)
                for client, image in zip(clients, images, strict=True)
            ]
            until(lambda: metric(server.client.get("/metrics").text, "convlens_queue_depth") == 24, 0.9)
            assert server.stop() == 0
            for future, row in zip(told, rows, strict=True):
                agree(future.result().json()["predictions"][0], row)
            for client in clients:
                client.close()
        lines = [json.loads(line) for line in server.stderr.splitlines()]
        assert sum(line["route"] == "/v1/predict" and line["status"] == 200 for line in lines) == 26
        assert set(lines[0]) == {"time", "id", "method", "route", "status", "ms", "images", "batch"}
        assert SECRET not in server.stderr
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)


@pytest.mark.slow
def test_ctrl_c_ends_with_130(model: Path) -> None:
    with Server(model) as server:
        assert server.client.get("/readyz").status_code == 200
        server.client.close()
        assert server.stop(signal.SIGINT) == 130
        assert "Traceback" not in server.stderr


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_counts_are_everybodys(model: Path, images: np.ndarray) -> None:
    with Server(model, "--workers", "2") as server:

        def ask(_: int) -> int | None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                return client.post(
                    "/v1/predict", content=encoded(images[0]), headers={"content-type": "image/png"}
                ).status_code

        def workers() -> set[int]:
            children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
            return {int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()}

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(80))) == {200}
            before = workers()
            assert len(before) == 2
            os.kill(min(before), signal.SIGKILL)
            deadline = time.monotonic() + 60
            while (len(now := workers()) < 2 or now == before) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert len(now) == 2
            assert now != before
            lines = [json.loads(line) for line in server.stderr.splitlines()]
            (said,) = [line["message"] for line in lines if line.get("level") == "error"]
            assert f"worker {min(before)} ended with exit code -9" in said
            assert set(pool.map(ask, range(20))) == {200}
        with httpx.Client(base_url=server.url, timeout=60) as client:
            name, deadline = 'convlens_requests_total{route="/v1/predict",status="200"}', time.monotonic() + 10
            while (count := metric(client.get("/metrics").text, name)) < 100 and time.monotonic() < deadline:
                time.sleep(0.05)  # a request is counted when its answer has gone out
        assert count == 100
        left = workers() | before
        assert server.stop() == 0
        assert not any(Path(f"/proc/{worker}").exists() for worker in left)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_a_signal_right_after_a_workers_death_ends_all(model: Path, seconds: float) -> None:
    with Server(model, "--workers", "2") as server:
        time.sleep(seconds)
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        workers = [int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
        os.kill(workers[0], signal.SIGKILL)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(15) == 130


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(model: Path) -> None:
    """While a body is waited for, which the first one does for half a minute."""
    with Server(model, "--workers", "2") as server:
        assert server.client.get("/healthz").status_code == 200
        with socket.create_connection(("127.0.0.1", server.port)) as open_one:
            open_one.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            time.sleep(0.5)
            server.process.send_signal(signal.SIGINT)
            time.sleep(1.5)
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(5) == 130


@pytest.mark.slow
def test_a_new_worker_does_not_serve_another_model(tmp_path: Path) -> None:
    model = save_served(tmp_path)
    with Server(model, "--workers", "2") as server:
        assert server.client.get("/healthz").status_code == 200
        time.sleep(5)  # both have loaded it
        load = load_model(model)
        save_model(model, replace(load, manifest=replace(load.manifest, metrics={"test_accuracy": 0.6})))
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        workers = [int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
        os.kill(workers[0], signal.SIGKILL)
        assert server.process.wait(60) == 1
        assert "start it again" in server.stderr


@pytest.mark.slow
def test_malformed_requests_end_in_no_500_and_leave_nothing(model: Path) -> None:
    """A few hundred of benchmarks/hostile.py, a quarter of them generated from the OpenAPI."""
    script = Path(__file__).parent.parent / "benchmarks" / "hostile.py"
    command = [sys.executable, script, model, "--requests", "300", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_who_asks_on_and_on_without_reading_fills_no_memory(model: Path) -> None:
    """uvicorn reads on after each answer, and keeps what was asked in the meantime: gigabytes in a minute."""
    with Server(model) as server:

        def peak() -> int:
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0])

        before = peak()
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=5) as connection:
            asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100_000
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                connection.sendall(asked)
        assert peak() - before < 100_000  # kB
        assert httpx.get(f"{server.url}/healthz").status_code == 200
