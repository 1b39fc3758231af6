"""`convlens open` as a real server in a process of its own: who may come in, every address, a training to its stop."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from convlens import Predictor, Recipe, Run, load, opening, pageroutes
from convlens.live import ask_to_stop, is_trained, stoppable
from convlens.run import only_one, start
from refusals import refused
from runs import fit_undrawn

RECIPE = Recipe(epochs=1).override({"model.name": "lenet5", "optim.name": "adam", "optim.lr": 2e-3, "batch_size": 32})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return fit_undrawn(RECIPE, load("mnist-5k", RECIPE, limit=1500), tmp_path_factory.mktemp("runs"))


@contextlib.contextmanager
def started(*words: object, said: list[str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`convlens ...`, and the address that it prints; what else it says is put into `said`."""
    command = [sys.executable, "-W", "error", "-m", "convlens", *map(str, words)]
    env = os.environ | {"BROWSER": "true"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    said = [] if said is None else said
    address: list[str] = []

    def read() -> None:
        for line in process.stderr or ():
            said.append(line)
            address.extend(re.findall(r"http://127\.0\.0\.1:\d+/\?ticket=\S+", line))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until = time.monotonic() + 120
        while not address:
            assert process.poll() is None, "".join(said)
            assert time.monotonic() < until, "".join(said)
            time.sleep(0.05)
        yield process, address[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # `train --open` has the page in a process of its own
        process.wait()
        reader.join()
        assert process.stderr
        process.stderr.close()


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    with started("open", run.path, "--no-browser") as (_, address):
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    """The browser that opened the address."""
    with httpx.Client(base_url=address.partition("?")[0], timeout=60) as client:
        for path in ("/", "/?ticket=wrong", "/?ticket="):
            answer = client.get(path)
            assert answer.status_code == 403
            assert "opens it once" in answer.text
        assert client.get("/api/run").status_code == 401
        assert client.get("/main.js").status_code == 401
        assert client.get(address, headers={"host": "evil.example"}).status_code == 421
        for method in ("HEAD", "POST", "OPTIONS"):  # neither these take the ticket
            assert client.request(method, address).status_code == 401
        answer = client.get(address)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "ticket" not in answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {*answer.headers["set-cookie"].split("; ")}
        yield client


def test_the_address_is_good_once_and_the_cookie_as_long_as_the_server(address: str, client: httpx.Client) -> None:
    assert httpx.get(address).status_code == 403
    assert client.get(address).status_code == 303  # who is inside may open it again
    assert client.get("/api/run").status_code == 200
    port = httpx.URL(address).port
    for cookie in ("", "x", 'convlens-1="', f"convlens-{port}=wrong"):
        assert httpx.get(f"http://127.0.0.1:{port}/api/run", headers={"cookie": cookie}).status_code == 401


def test_other_sites_and_names_are_refused(client: httpx.Client) -> None:
    assert client.get("/api/run", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.post("/api/pictures", content=b"x", headers={"origin": "http://evil.example"}).status_code == 403
    same = f"http://{client.base_url.netloc.decode()}"
    assert client.get("/api/run", headers={"origin": same}).status_code == 200


def test_every_answer_carries_what_browsers_hold_to(client: httpx.Client) -> None:
    for path in ("/api/run", "/api/nothing", "/nothing.js", "/api/look"):
        headers = client.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/nothing.js",
        "/../guard.py",
        "/%2e%2e/guard.py",
        "/..%2fguard.py",
        "//etc/passwd",
        "/%00.js",
        "/" + "a" * 5000 + ".js",
    ],
)
def test_only_the_pages_own_files_are_there(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_a_stroke_is_one_request_and_the_answer_the_predictors(run: Run, client: httpx.Client, tmp_path: Path) -> None:
    canvas = np.zeros((280, 280), dtype=np.uint8)
    canvas[40:240, 130:160] = 255
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    told = client.post("/api/pictures?digit=1&look=1", content=file.getvalue()).json()
    assert told["look"]["layers"] == []
    pixels = client.get(f"/api/picture/{told['ref']}.png")
    assert pixels.headers["content-type"] == "image/png"
    (tmp_path / "seen.png").write_bytes(pixels.content)
    expected = next(Predictor.load(run.path).predict([tmp_path / "seen.png"]))
    assert max(told["look"]["probabilities"]) == pytest.approx(expected.probability, rel=1e-5)
    assert run.model_file().manifest.classes[told["look"]["predicted"]] == expected.label
    seconds = []
    for _ in range(15):
        began = time.perf_counter()
        assert client.post("/api/pictures?digit=1&look=1", content=file.getvalue()).status_code == 200
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.04  # Nagle's algorithm alone would take that


def test_every_address_answers(client: httpx.Client) -> None:
    about = client.get("/api/run").json()
    assert about["runs"] == [about["name"]]
    layer = next(row["name"] for row in about["layers"] if row["kind"] == "Conv2d")
    for path in (
        "look?ref=test:0",
        f"look?ref=test:0&off={layer}:0,1",
        f"maps?ref=test:0&layer={layer}&from=2&count=3",
        f"values?ref=test:0&layer={layer}&channel=1",
        f"number?ref=test:0&layer={layer}&channel=1&row=2&column=3",
        f"filters?layer={layer}&channel=1",
        f"filters?layer={layer}",
        "images?split=train&class=3&page=0",
        "images?sort=unsure&wrong=1",
        "confusion",
        "near?ref=test:0",
        "mistakes",
        "epochs",
    ):
        answer = client.get(f"/api/{path}")
        assert answer.status_code == 200, (path, answer.text)
        assert answer.json()
    assert client.get("/api/heat?ref=test:0&method=grad-cam&class=3").content[:4] == b"\x89PNG"
    assert len(client.get(f"/api/maps?ref=test:0&layer={layer}&from=2&count=3").json()["channels"]) == 3


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("look", "ref: field required"),
        ("look?ref=test:0&run=1", "there is no run 1"),
        ("look?ref=test:0&run=-1", "there is no run -1"),
        ("look?ref=nothing", "named like test:0"),
        ("look?ref=test:0&off=x", "off is layer:3,5"),
        ("look?ref=test:0&epoch=1", "were not kept"),
        ("look?ref=test:0&epoch=-1", "were not kept"),
        ("maps?ref=test:0&layer=nope", "unknown layer"),
        ("number?ref=test:0&layer=nope&channel=one", "channel: input should be a valid integer"),
        ("number?ref=test:0&layer=nope&channel=" + "9" * 5000, "channel"),
        ("picture/test:99999.png", "numbered from 0"),
        ("heat?ref=test:0&class=eleven", "unknown class"),
        ("compare", "there is no run 1"),
        ("maps?ref=test:0&layer=nope&stamp=model.safetensors-1", "saved another network"),
        ("images?page=x", "page: input should be"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(client: httpx.Client, path: str, words: str) -> None:
    answer = client.get(f"/api/{path}")
    assert 400 <= answer.status_code < 500
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_network_that_is_gone_is_a_conflict(client: httpx.Client) -> None:
    told = client.get("/api/look?ref=test:0").json()
    name = next(layer["name"] for layer in told["layers"] if len(layer["size"]) == 2)
    asked = f"ref=test:0&layer={name}&channel=0"
    for path in (f"look?{asked}", f"maps?{asked}", f"values?{asked}", f"number?{asked}"):
        assert client.get(f"/api/{path}&stamp={told['stamp']}").status_code == 200
        assert client.get(f"/api/{path}&stamp=last.safetensors-1").status_code == 409


def test_the_page_is_at_the_same_address_each_time_if_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with opening._listen(0) as taken:
        free = taken.getsockname()[1]
    monkeypatch.setattr(opening, "PORT", free)
    with opening._listen(None) as first, opening._listen(None) as second:
        assert first.getsockname()[1] == free != second.getsockname()[1]
        refused(lambda: opening._listen(free), f"port {free}")


def test_odd_parameters_end_in_no_500(client: httpx.Client) -> None:
    layers = [row["name"] for row in client.get("/api/run").json()["layers"]]
    words = [
        "",
        "0",
        "1",
        "-1",
        "7",
        "99999",
        "9" * 40,
        "x",
        "猫",
        "\x00",
        "a" * 3000,
        "test:0",
        "train:3",
        "up:",
        "input",
        "nan",
    ]
    words += [
        "1e9",
        "test:1:2",
        "features.0:1",
        f"{layers[2]}:0",
        ";;",
        ":",
        "../..",
        "grad-cam",
        "occlusion",
        "sure",
        "first",
    ]
    asked = {
        "look": ("ref", "off", "brief", "epoch", "run"),
        "maps": ("ref", "layer", "off", "from", "count", "epoch"),
        "values": ("ref", "layer", "channel", "side", "off"),
        "number": ("ref", "layer", "channel", "row", "column", "in", "off"),
        "filters": ("layer", "channel", "epoch"),
        "heat": ("ref", "method", "class", "epoch"),
        "images": ("split", "class", "predicted", "sort", "wrong", "page"),
        "near": ("ref", "run"),
        "mistakes": ("epoch", "run"),
        "compare": ("kind", "page"),
        "epochs": ("run",),
    }
    random = np.random.default_rng(0)
    statuses = []
    for _ in range(400):
        path = str(random.choice(list(asked)))
        sound = {"ref": "test:0", "layer": str(random.choice(layers)), "channel": "0"}
        given = {name: str(random.choice(words)) for name in asked[path] if random.random() < 0.4}
        answer = client.get(f"/api/{path}", params={**{k: v for k, v in sound.items() if k in asked[path]}, **given})
        assert answer.status_code < 500, (path, given, answer.text)
        assert answer.status_code == 200 or answer.json()["error"], (path, given)
        statuses.append(answer.status_code)
    assert statuses.count(200) > 50 < statuses.count(422)


def test_bodies_are_bounded_and_must_be_pictures(client: httpx.Client) -> None:
    assert "empty" in client.post("/api/pictures", content=b"").json()["error"]
    assert "not a picture" in client.post("/api/pictures", content=b"%PDF").json()["error"]
    assert client.post("/api/pictures", content=b"x" * 21_000_000).status_code == 413
    assert "not being trained" in client.post("/api/training/stop").json()["error"]


def test_a_finished_runs_training_is_told_at_once(run: Run, client: httpx.Client) -> None:
    lines = client.get("/api/training").text.splitlines()
    rows = [json.loads(line[6:]) for line in lines if line.startswith("data:")]
    assert rows == [*run.history, {"finished": True}]
    assert lines[-2 if lines[-1] else -3] == "event: end"
    again = client.get("/api/training", headers={"last-event-id": "1"}).text
    assert "train_loss" not in again


@pytest.mark.slow
def test_two_runs_are_opened_beside_each_other_until_ctrl_c(run: Run, tmp_path: Path) -> None:
    other = fit_undrawn(
        RECIPE.override({"seed": 5}), load("mnist-5k", RECIPE.override({"seed": 5}), limit=300), tmp_path
    )
    with started("open", run.path, other.path, "--no-browser") as (process, address):
        client = httpx.Client(base_url=address.partition("?")[0], timeout=60)
        client.get(address)
        assert client.get("/api/run?run=1").json()["runs"] == [run.path.name, other.path.name]
        answers = [client.get(f"/api/look?ref=test:0&brief=1&run={i}").json()["logits"] for i in (0, 1)]
        assert answers[0] != answers[1]
        assert client.get("/api/compare").json()["sides"][1]["path"] == str(other.path)
        client.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)


def test_serve_with_the_page_answers_both(run: Run, convlens) -> None:
    token = "a-token-of-one's-own"
    words = ("serve", run.path, "--page", "--port", "0", "--no-log", "--token", token)
    with started(*words) as (_, address):
        client = httpx.Client(base_url=address.partition("?")[0], timeout=60)
        assert client.get("/").status_code == 403
        assert client.get("/v1/model").status_code == 401
        assert client.get("/v1/model", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        assert client.get(address).status_code == 303
        assert client.get("/v1/model").json()["classes"] == client.get("/api/run").json()["classes"]
        pixels = client.get("/api/picture/test:0.png").content
        row = client.post("/v1/predict", content=pixels, headers={"content-type": "image/png"}).json()["predictions"][0]
        look = client.get("/api/look?ref=test:0&brief=1").json()
        assert row["probability"] == pytest.approx(max(look["probabilities"]), rel=1e-5)
        client.close()
    refusal = convlens("serve", run.path, "--page", "--workers", "2")
    assert (refusal.returncode, "one process" in refusal.stderr) == (2, True)
    refusal = convlens("serve", run.path / "model.safetensors", "--page", "--port", "0")
    assert (refusal.returncode, "is not a run folder" in refusal.stderr) == (2, True)


def test_what_is_no_run_is_one_sentence(convlens, tmp_path: Path) -> None:
    result = convlens("open", tmp_path)
    assert result.returncode == 2
    assert "is not a run folder" in result.stderr


@pytest.mark.slow
def test_a_training_is_watched_stopped_and_kept(tmp_path: Path) -> None:
    words = ("mnist-5k", "-m", "lenet5", "--epochs", "500", "--limit", "300", "--out", tmp_path, "--name", "live")
    said: list[str] = []
    with started("train", *words, "--open", "--no-plots", "--no-report", said=said) as (process, address):
        client = httpx.Client(base_url=address.partition("?")[0], timeout=60)
        client.get(address)
        rows = []
        with client.stream("GET", "/api/training") as stream:
            for line in stream.iter_lines():
                rows += [json.loads(line[6:])] if line.startswith("data:") else []
                if len(rows) >= 3:
                    break
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        about = client.get("/api/run").json()
        assert (about["training"], about["finished"], about["accuracy"]) == (True, False, None)
        assert client.get("/api/look?ref=test:0").status_code == 200
        assert client.get("/api/look?ref=test:0&epoch=0").status_code == 200
        assert "is not finished" in client.get("/api/confusion").json()["error"]
        assert client.post("/api/training/stop").json() == {"stopping": True}
        until = time.monotonic() + 60
        while not (about := client.get("/api/run").json())["finished"]:
            assert time.monotonic() < until
            time.sleep(0.1)
        run = Run.open(tmp_path / "live")
        assert 3 <= len(run.history) < 500
        assert about["accuracy"] == run.metrics["test"]["accuracy"]
        assert about["kept"][0] == 0
        assert client.get("/api/confusion").json()["counts"] == run.metrics["test"]["confusion"]
        client.close()
        while "The page stays open; Ctrl-C ends it.\n" not in said:
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)  # at a terminal both get it
        assert process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@pytest.mark.slow
def test_ctrl_c_while_the_run_is_finished_ends_the_page_too(tmp_path: Path) -> None:
    words = ("mnist-5k", "-m", "lenet5", "--epochs", "500", "--limit", "600", "--out", tmp_path, "--name", "late")
    said: list[str] = []
    with started("train", *words, "--no-report", "--open", said=said) as (process, _):
        ask_to_stop(Run.open(tmp_path / "late"))
        until = time.monotonic() + 60
        while not (tmp_path / "late" / "metrics.json").exists():
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)  # the plots are drawn now, for some seconds
        assert process.wait(60) == 130
    assert list((tmp_path / "late" / "plots").glob("*.png"))
    assert any(line.startswith("test accuracy") for line in said), said


def test_the_rows_come_as_they_are_written_and_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(RECIPE, load("mnist-5k", RECIPE, limit=300), tmp_path)
    rows = [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in range(1, 6)]
    monkeypatch.setattr(pageroutes, "POLLED", 0.01)
    monkeypatch.setattr(pageroutes, "STREAMED", 0.3)
    monkeypatch.setattr(pageroutes, "IDLE", 0.05)

    def written(count: int) -> None:
        (run.path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))

    async def told(last: int) -> list[str]:
        found = []
        async for event in pageroutes._events(run, last):
            found.append(event)
            if "id: 2" in event:
                written(4)
        return found

    with only_one(run):
        written(2)
        first = asyncio.run(told(0))
        assert [event.partition("\n")[0] for event in first[1:]] == ["id: 1", "id: 2", "id: 3", "id: 4"]
        assert first[0].startswith("retry:")  # it ended by its time, and the browser comes back
        written(5)
        again = asyncio.run(told(4))
        assert [json.loads(event.splitlines()[1][6:]) for event in again[1:]] == rows[4:]
    assert asyncio.run(told(5))[1:] == ['event: end\ndata: {"finished": false}\n\n']


def test_the_wish_to_stop_needs_a_training_that_takes_it(tmp_path: Path) -> None:
    run = start(RECIPE, load("mnist-5k", RECIPE, limit=300), tmp_path)
    refused(lambda: ask_to_stop(run), "is not being trained")
    stop = threading.Event()
    with only_one(run):
        assert is_trained(run)
        refused(lambda: ask_to_stop(run), "first epoch is not done")
        (run.path / "history.jsonl").write_text('{"epoch": 1}\n')
        refused(lambda: ask_to_stop(run), "press Ctrl-C where it runs")
        with stoppable(run, stop):
            ask_to_stop(run)
            assert stop.wait(5)
        (run.path / ".trainer").write_text('{"pid": 1, "host": "elsewhere"}')
        refused(lambda: ask_to_stop(run), "press Ctrl-C where it runs")
    assert not is_trained(run)
