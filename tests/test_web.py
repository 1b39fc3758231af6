"""The page that `export --to web` writes: whole folders, Pillow's pixels to the bit, and in a real browser the numbers
of Predictor."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from chromium import CHROMIUM
from convlens import Data, InputSpec, Predictor, Recipe, load, verify, webexport
from convlens.images import preprocess
from convlens.modelfile import ModelFile, save_model
from convlens.onnxexport import export_onnx
from convlens.webexport import COPIED, PAGE, RUNTIME, SUMS, check_web, runtime_files, write_web
from refusals import refused
from runs import fit_undrawn
from test_modelfile import make_file

ORT = os.environ.get("CONVLENS_ORT_WEB", "")  # a folder that npm installed onnxruntime-web into, for these tests
NODE = shutil.which("node")
browsed = pytest.mark.skipif(not (ORT and CHROMIUM), reason="needs chromium, and onnxruntime-web in CONVLENS_ORT_WEB")
pytestmark = pytest.mark.usefixtures("operators_read_once")
FAKE = {name: b"nothing that runs" for name, _ in COPIED.values()}


def in_node(script: str, folder: Path) -> str:
    (folder / "script.mjs").write_text(script)
    done = subprocess.run(["node", "script.mjs"], cwd=folder, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(NODE is None, reason="there is no node")
@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow resized tall pictures otherwise before 13")
def test_a_picture_is_prepared_as_pillow_does_it_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases, pictures, expected = [], [], []
    for i in range(500):
        height, width = (int(side) for side in rng.integers(1, 300 if i % 7 == 0 else 80, 2))
        size = (28, 28) if i % 5 == 0 else tuple(int(side) for side in rng.integers(1, 60, 2))
        size = (height, width) if i % 11 == 0 else size
        spec = InputSpec(size, (1, 3)[i % 2], ("fit", "crop", "stretch")[i % 3])
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        if i % 4 == 0:
            pixels = pixels // 128 * 255  # black and white, which the filter overshoots
        if i % 3 == 0:
            pixels[..., 3] = 255
        cases.append({"width": width, "height": height, "size": size, "channels": spec.channels, "resize": spec.resize})
        pictures.append(pixels.tobytes())
        expected.append(preprocess(Image.fromarray(pixels), spec))
    (tmp_path / "pictures").write_bytes(b"".join(pictures))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    in_node(
        f"""import {{ readFileSync, writeFileSync }} from "node:fs";
        import {{ prepare }} from "{PAGE}/resize.js";
        const all = new Uint8Array(readFileSync("pictures"));
        let at = 0;
        const found = JSON.parse(readFileSync("cases.json")).map((one) => {{
          const data = all.subarray(at, (at += 4 * one.width * one.height));
          return prepare({{ data, width: one.width, height: one.height }}, one);
        }});
        writeFileSync("found", Buffer.concat(found));""",
        tmp_path,
    )
    found = np.frombuffer((tmp_path / "found").read_bytes(), np.uint8)
    assert found.size == sum(each.size for each in expected)
    ends = np.cumsum([each.size for each in expected])
    for case, part, each in zip(cases, np.split(found, ends[:-1]), expected, strict=True):
        assert np.array_equal(part.reshape(each.shape), each), case


@pytest.mark.skipif(NODE is None, reason="there is no node")
def test_the_digest_is_sha256(tmp_path: Path) -> None:
    lengths = [0, 1, 55, 56, 63, 64, 65, 119, 120, 100_000]
    found = in_node(
        f"""import {{ sha256 }} from "{PAGE}/sha256.js";
        for (const n of {lengths}) console.log(sha256(Uint8Array.from({{ length: n }}, (_, i) => (31 * i) & 255)));""",
        tmp_path,
    )
    expected = [hashlib.sha256(bytes(31 * i & 255 for i in range(n))).hexdigest() for n in lengths]
    assert found.split() == expected


# The folder -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    path.write_bytes(export_onnx(make_file("lenet5", InputSpec((28, 28), 1))))
    return path


@pytest.fixture
def pinned(monkeypatch) -> None:
    """The fake runtime is the right one."""
    pins = {source: (name, hashlib.sha256(FAKE[name]).hexdigest()) for source, (name, _) in COPIED.items()}
    monkeypatch.setattr(webexport, "COPIED", pins)


@pytest.mark.usefixtures("pinned")
def test_what_is_in_the_folder(onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "web"
    size = write_web(onnx, folder, FAKE)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    page = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    assert files.keys() == page | FAKE.keys() | {"model.json", "model.onnx", SUMS}
    assert "runtime/LICENSE.txt" in page
    assert size == sum(path.stat().st_size for path in files.values())
    assert files["model.onnx"].read_bytes() == onnx.read_bytes()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=folder, check=True)
    assert len(files[SUMS].read_text().splitlines()) == len(files) - 1
    assert [path.name for path in folder.parent.iterdir()] == ["web"]
    assert check_web(folder) == []


@pytest.mark.usefixtures("pinned")
def test_another_export_replaces_the_page_and_nothing_else(onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    write_web(onnx, folder, FAKE)  # empty
    (folder / "model.json").write_text("{}")
    (tmp_path / ".web.part").mkdir()  # of one that was killed
    (tmp_path / ".web.old").mkdir()
    write_web(onnx, folder, FAKE)
    assert check_web(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["web"]
    refused(lambda: write_web(onnx, onnx, FAKE), onnx, "is a file")


@pytest.mark.parametrize("name", [".git/HEAD", "CNAME", "runtime/thesis.tex", "empty/", "link"])
def test_a_folder_that_holds_anything_else_is_left_alone(onnx: Path, tmp_path: Path, name: str) -> None:
    folder, other = tmp_path / "web", tmp_path / "other"
    write_web(onnx, folder, FAKE)
    if name.endswith("/"):
        (folder / name).mkdir()
    elif name == "link":
        other.mkdir()
        (folder / name).symlink_to(other)
    else:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    refused(lambda: write_web(onnx, folder, FAKE), folder, f"holds {name.removesuffix('/HEAD').rstrip('/')}")
    assert (folder / name).exists()


def test_a_list_of_sums_does_not_make_a_page(onnx: Path, tmp_path: Path) -> None:
    (tmp_path / SUMS).write_text(f"{'0' * 64}  thesis.tex\n")
    (tmp_path / "thesis.tex").write_text("mine")
    refused(lambda: write_web(onnx, tmp_path, FAKE), tmp_path, "holds")
    (tmp_path / SUMS).unlink()
    refused(lambda: write_web(onnx, tmp_path, FAKE), tmp_path, "holds thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.usefixtures("pinned")
def test_a_refused_move_leaves_the_older_page(onnx: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "web"
    write_web(onnx, folder, FAKE)
    before = (folder / "model.json").stat().st_ino

    def rename(path: Path, target: Path, really: Callable[[Path, Path], Path] = Path.rename) -> Path:
        if path.name == ".web.part":
            raise PermissionError(errno.EACCES, "in use")
        return really(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    refused(lambda: write_web(onnx, folder, FAKE), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["web"]
    assert (folder / "model.json").stat().st_ino == before
    assert check_web(folder) == []


@pytest.mark.usefixtures("pinned")
def test_a_kill_between_the_moves_loses_no_page(onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    write_web(onnx, folder, FAKE)
    before = (folder / "model.json").stat().st_ino
    code = f"""import os, signal
from pathlib import Path
from convlens.webexport import write_web
really = Path.rename
def rename(path, target):
    if path.name == ".web.part":
        os.kill(os.getpid(), signal.SIGKILL)
    return really(path, target)
Path.rename = rename
write_web(Path({str(onnx)!r}), Path({str(folder)!r}), {FAKE!r})"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [".web.old", ".web.part"]
    refused(lambda: write_web(folder.with_name(".web.part") / "page.js", folder, FAKE))  # it fails, and puts it back
    assert (folder / "model.json").stat().st_ino == before
    assert check_web(folder) == []
    write_web(onnx, folder, FAKE)
    assert [path.name for path in tmp_path.iterdir()] == ["web"]


@pytest.mark.usefixtures("pinned")
def test_the_folder_may_be_the_one_that_is_stood_in_or_a_link(onnx: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "site").mkdir()
    for _ in ("empty", "a page"):
        monkeypatch.chdir(tmp_path / "site")
        write_web(onnx, Path(), FAKE)
        assert check_web(tmp_path / "site") == []
    (tmp_path / "link").symlink_to("site")
    for _ in range(2):
        write_web(onnx, tmp_path / "link", FAKE)
        assert check_web(tmp_path / "site") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "site"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.usefixtures("pinned")
def test_a_full_disk_leaves_the_older_page(onnx: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "web"
    write_web(onnx, folder, FAKE)

    def write(path: Path, data: bytes, to_disk: Callable[[Path, bytes], int] = Path.write_bytes) -> int:
        if path.name == "model.onnx":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return to_disk(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    refused(lambda: write_web(onnx, folder, FAKE), "no room left", folder, exit_code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["web"]
    assert check_web(folder) == []


def test_the_runtime_is_the_pinned_one_or_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no npm, and so no global folder
    install = f"npm install onnxruntime-web@{RUNTIME}"
    refused(runtime_files, "node_modules/onnxruntime-web", install)
    refused(lambda: runtime_files(tmp_path / "none"), tmp_path / "none", install)
    package = tmp_path / "node_modules" / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    refused(runtime_files, "onnxruntime-web 1.2.3", install)
    (package / "package.json").write_text(f'{{"name": "onnxruntime-web", "version": "{RUNTIME}"}}')
    refused(runtime_files, "is not whole", install)
    for source in COPIED:
        (package / source).write_bytes(b"another")
    for given in (None, tmp_path, tmp_path / "node_modules", package):
        refused(partial(runtime_files, given), next(iter(COPIED)), f"is not the file of onnxruntime-web {RUNTIME}")


def relist(folder: Path, *added: str) -> None:
    """The sums made anew, as somebody does who knows of them."""
    names = [*(line.split("  ")[1] for line in (folder / SUMS).read_text().splitlines()), *added]
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    (folder / SUMS).write_text("".join(f"{sha256}  {name}\n" for sha256, name in zip(sums, names, strict=True)))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads((folder / "model.json").read_text())
    change(facts)
    (folder / "model.json").write_text(json.dumps(facts))


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("pinned")
def test_every_changed_file_is_named(onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    write_web(onnx, folder, FAKE)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path, data in whole.items():
        name = path.relative_to(folder).as_posix()
        if name != SUMS:
            flip(path, len(data) // 2)
            assert check_web(folder) == [f"{name} is not the file that was exported"]
            path.unlink()
            assert check_web(folder) == [f"{name} is missing"]
            path.write_bytes(data)
    lines = whole[folder / SUMS].decode().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if "page.js" not in line))
    assert check_web(folder) == [f"{SUMS} does not list page.js"]
    (folder / SUMS).unlink()
    assert check_web(folder) == [f"{SUMS} cannot be read"]


@pytest.mark.usefixtures("pinned")
def test_a_list_made_anew_does_not_hide_other_files(onnx: Path, tmp_path: Path) -> None:
    folder, gray = tmp_path / "web", b"19595"
    write_web(onnx, folder, FAKE)
    for name, source in (("resize.js", "ConvLens"), ("runtime/ort.js", f"onnxruntime-web {RUNTIME}")):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data.replace(gray, b"19596") if gray in data else b"another")
        relist(folder)
        (problem,) = check_web(folder)
        assert problem.startswith(f"{name} is not the file of {source}")
        (folder / name).write_bytes(data)
        relist(folder)
    (folder / "added.js").write_text("alert(1)")
    assert check_web(folder) == ["added.js is not of the page"]
    relist(folder, "added.js")
    assert check_web(folder) == ["added.js is not of the page"]


@pytest.mark.usefixtures("pinned")
def test_of_another_versions_page_the_code_is_not_judged(onnx: Path, tmp_path: Path) -> None:
    def said() -> tuple[bool | None, str]:
        (check,) = (check for check in verify(folder).checks if check.name == "page")
        return check.passed, check.said

    folder = tmp_path / "web"
    write_web(onnx, folder, FAKE)
    assert said() == (True, "all its files are those that were exported")
    edit(folder, lambda facts: facts.update(convlens="99.1"))
    (folder / "page.js").write_text("// as 99.1 had it")
    (folder / "icon.svg").unlink()
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if "icon.svg" not in line))
    relist(folder)
    passed, why = said()
    assert passed is None
    assert "only 99.1, which wrote it, can tell" in why
    (folder / "added.js").write_text("alert(1)")
    assert said() == (False, "added.js is not of the page")
    (folder / "added.js").unlink()
    (folder / "runtime" / "ort.js").write_text("another")
    relist(folder)
    assert said() == (False, f"runtime/ort.js is not the file of onnxruntime-web {RUNTIME}")
    edit(folder, lambda facts: facts.pop("convlens"))
    (folder / "runtime" / "ort.js").write_bytes(FAKE["runtime/ort.js"])
    relist(folder)
    assert said() == (False, "model.json is not what ConvLens writes")


def test_a_page_without_its_list_and_its_index_is_still_a_page(onnx: Path, tmp_path: Path) -> None:
    write_web(onnx, tmp_path / "web", FAKE)
    for name in ("index.html", SUMS):
        (tmp_path / "web" / name).unlink()
    found = verify(tmp_path / "web")
    assert not found.passed
    assert [check.said for check in found.checks if check.passed is False] == [f"{SUMS} cannot be read"]


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("classes", lambda facts: facts["classes"].__setitem__(0, "another")),
        ("calibration", lambda facts: facts["calibration"].update(temperature=2.0)),
        ("input", lambda facts: facts["input"].update(resize="fit")),
        ("golden", lambda facts: facts["golden"].update(logits=base64.b64encode(bytes(48)).decode())),
        ("sha256", lambda facts: facts.update(sha256="0" * 64)),
    ],
)
def test_a_list_made_anew_does_not_hide_what_the_model_says(onnx: Path, tmp_path: Path, part: str, change) -> None:
    write_web(onnx, tmp_path / "web", FAKE)
    edit(tmp_path / "web", change)
    assert check_web(tmp_path / "web") == ["model.json is not the file that was exported"]
    relist(tmp_path / "web")
    assert check_web(tmp_path / "web") == [f"model.json and model.onnx differ in {part}"]


def test_the_command_needs_the_runtime_before_it_computes(convlens, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    save_model(tmp_path / "model.safetensors", make_file("lenet5", InputSpec((28, 28), 1)))
    done = convlens("export", tmp_path, "--to", "web", cwd=tmp_path)
    assert done.returncode == 2
    assert f"npm install onnxruntime-web@{RUNTIME}" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.skipif(not ORT, reason="needs onnxruntime-web in CONVLENS_ORT_WEB")
def test_the_command_writes_what_verify_passes(convlens, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", make_file("lenet5", InputSpec((28, 28), 1)))
    given = convlens("export", tmp_path, "--to", "web", "--to", "onnx", "--runtime", ORT)
    assert given.stdout.splitlines() == [str(tmp_path / "export" / name) for name in ("web", "model.onnx")]
    assert f"python -m http.server -d {tmp_path / 'export' / 'web'}" in given.stderr.replace("\n", "")
    assert convlens("export", tmp_path, "--to", "web", "--out", tmp_path / "site", "--runtime", ORT).returncode == 0
    done = convlens("verify", tmp_path / "site", "--against", tmp_path)
    assert done.returncode == 0, done.stdout
    edit(tmp_path / "site", lambda facts: facts["classes"].__setitem__(0, "another"))
    done = convlens("verify", tmp_path / "site")
    assert done.returncode == 3
    assert "model.json is not the file that was exported" in " ".join(done.stdout.split())


# In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address that a plain static server gives it; pages lie in folders of it."""
    root = tmp_path_factory.mktemp("site")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def publish(file: ModelFile, folder: Path) -> None:
    path = folder.with_suffix(".onnx")
    path.write_bytes(export_onnx(file))
    write_web(path, folder, runtime_files(ORT))


class Tab:
    """A page, which notes what it says on the console and what it asks other hosts for."""

    def __init__(self, browser: Any, url: str, **settings: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1000, "height": 900}, **settings)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(url)
        self.page.wait_for_function("() => document.getElementById('status').className.match(/good|bad|warn/)")

    def _asked(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "blob:" + url.partition("/page")[0])):
            self.complaints.append(f"asked for {asked}")

    def say(self, name: str) -> str:
        return self.page.locator(f"#{name}").inner_text()

    def answered(self) -> None:
        """Wait until what was given last is classified."""
        self.page.wait_for_function("() => document.querySelector('main').getAttribute('aria-busy') === 'false'")

    def give(self, data: bytes, kind: str = "image/png") -> None:
        file = {"name": "picture", "mimeType": kind, "buffer": data}
        self.page.set_input_files("#file", files=[file])
        self.answered()

    def bars(self) -> list[tuple[str, float]]:
        rows = "rows => rows.map(row => [row.firstChild.textContent, Number(row.lastChild.value)])"
        return [tuple(row) for row in self.page.locator("#bars li").evaluate_all(rows)]

    def pixels(self, canvas: str) -> np.ndarray:
        """uint8 (H, W, 4)."""
        read = """c => {
            const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);
            return [c.height, c.width, btoa(Array.from(data, value => String.fromCharCode(value)).join(''))];
        }"""
        height, width, data = self.page.locator(f"#{canvas}").evaluate(read)
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)

    def seen(self, channels: int) -> np.ndarray:
        return self.pixels("seen")[:, :, :channels].transpose(2, 0, 1)


def encoded(picture: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def as_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def says_the_same(tab: Tab, predictor: Predictor, pictures: list[bytes]) -> None:
    """Whether the page's answers to PNGs are Predictor's."""
    classes = predictor.manifest.classes
    tab.page.select_option("#top", str(len(classes)))
    spec = predictor.manifest.input
    for data in pictures:
        pixels = preprocess(data, spec)
        row = next(predictor.answers(pixels[None], len(classes)))
        tab.give(data)
        assert np.array_equal(tab.seen(spec.channels), pixels)
        names, numbers = zip(*tab.bars(), strict=True)
        assert names[0] == row.label
        assert tab.say("label").startswith(row.label)
        assert numbers == pytest.approx([p for _, p in row.top], abs=1e-5)
        assert tab.page.locator("#unusual").is_visible() == bool(row.unusual)
    assert tab.complaints == []


@pytest.fixture(scope="module")
def data() -> Data:
    return load("mnist-5k", Recipe(), limit=1500)


@pytest.fixture(scope="module")
def digits(data: Data, site: tuple[Path, str]) -> tuple[str, Path]:
    """The address of a page that knows digits, calibrated on 150 images, and its folder."""
    root, url = site
    run = fit_undrawn(replace(Recipe(), epochs=2), data, root / "runs")
    publish(run.model_file(), root / "page")
    return f"{url}page/", root / "page"


@browsed
def test_it_gives_the_labels_of_predictor(browser, digits, data: Data) -> None:
    tab = Tab(browser, digits[0])
    assert "good" in tab.page.locator("#status").get_attribute("class")
    assert tab.say("status").startswith("Checked: gives the numbers it was trained with (8 images replayed")
    says_the_same(
        tab,
        Predictor.load(digits[1]),
        [encoded(as_picture(image)) for image in data.test.images[:100].numpy()],
    )
    tab.page.close()


@browsed
@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "cifar10", "flowers"])
def test_it_gives_the_labels_of_predictor_on_real_data(browser, site, data_root: Path, name: str) -> None:
    root, url = site
    if name == "flowers" and not (data_root / "flowers").is_dir():
        pytest.skip("CONVLENS_DATA has no folder flowers")
    recipe = replace(Recipe(), epochs=1)
    data = load(data_root / "flowers" if name == "flowers" else name, recipe, data_root, limit=600)  # 100 of the test
    publish(fit_undrawn(recipe, data, root / "runs").model_file(), root / f"page-{name}")
    tab = Tab(browser, f"{url}page-{name}/")
    predictor = Predictor.load(root / f"page-{name}")
    images = data.test.at(slice(0, 100)).numpy()
    assert len(images) >= 95
    says_the_same(tab, predictor, [encoded(as_picture(image)) for image in images])
    tab.page.close()


@pytest.fixture(scope="module")
def colour(browser, site: tuple[Path, str]) -> Iterator[Tab]:
    """A page for coloured pictures."""
    root, url = site
    publish(make_file("lenet5", InputSpec((28, 32), 3)), root / "page-colour")
    tab = Tab(browser, f"{url}page-colour/")
    yield tab
    tab.page.close()


@browsed
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "GIF", "BMP", "16", "lossless", *range(1, 9)])
def test_pictures_of_every_kind_are_read_as_in_python(colour: Tab, kind: str | int) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (41, 57, 4), dtype=np.uint8)
    picture, mime = Image.fromarray(pixels), "image/png"
    if kind == "LA":
        data = encoded(picture.convert("LA"))
    elif kind == "P":
        data = encoded(picture.convert("RGB").quantize(32))
    elif kind == "16":
        data = encoded(Image.fromarray(rng.integers(0, 65_536, (41, 57), dtype=np.uint16)))
    elif kind in ("GIF", "BMP"):
        data, mime = encoded(picture.convert("RGB"), kind), f"image/{kind.lower()}"
    elif kind == "lossless":
        data, mime = encoded(picture, "WEBP", lossless=True, exact=True), "image/webp"
    elif kind == "RGBA":
        data = encoded(picture)
    else:
        exif = Image.Exif()
        exif[0x0112] = kind
        data, mime = encoded(picture.convert("RGB"), "JPEG", exif=exif), "image/jpeg"
    colour.give(data, mime)
    assert np.array_equal(colour.seen(3), preprocess(data, InputSpec((28, 32), 3)))
    assert colour.complaints == []


@browsed
def test_what_is_no_picture_is_said(browser, digits) -> None:
    tab = Tab(browser, digits[0])
    for data in (b"not a picture", encoded(Image.new("RGB", (9, 9)))[:40], b""):
        tab.give(data)
        assert tab.say("label") == "This file is no picture that the browser can read, or it is damaged."
        assert tab.bars() == []
    tab.give(encoded(Image.new("L", (70_000, 1))))
    assert tab.say("label") == "The picture has 70000 × 1 pixels; a side of 65535 is allowed."
    tab.give(encoded(Image.new("L", (30, 30))))
    assert len(tab.bars()) == 5
    tab.page.close()


# A canvas that is larger than the browser's limit stays empty; `throws` is how others answer
LIMITED = """globalThis.createImageBitmap = async (file) => ({ ...file, close() { closed += 1; } });
  let closed = 0;
  const found = [];
  globalThis.OffscreenCanvas = class {
    constructor(width, height) { this.size = [width, height]; }
    getContext() {
      const [width, height] = this.size, holds = width * height <= 16_777_216;
      let at = "none", drawn = false;
      return {
        fillRect(x, y) { at = `${x},${y}`; },
        clearRect(x, y) { at = at === `${x},${y}` ? "none" : at; },
        drawImage() { drawn = at === "none"; },
        getImageData(x, y, w, h) {
          if (!holds && throws) throw new RangeError("out of memory");
          return { data: [0, 0, 0, holds && (drawn || at === `${x},${y}`) ? 255 : 0], width: w, height: h };
        },
      };
    }
  };
"""


@pytest.mark.skipif(NODE is None, reason="there is no node")
@pytest.mark.parametrize("throws", ["true", "false"])
def test_pictures_beyond_a_limit_are_refused_and_not_seen_empty(tmp_path: Path, throws: str) -> None:
    sizes = [(4096, 4096), (4096, 4097), (65_535, 9), (65_536, 9), (9, 65_536), (10_001, 10_000)]
    found = in_node(
        f"""import {{ decode }} from "{PAGE}/picture.js";
        const throws = {throws};
        {LIMITED}
        for (const [width, height] of {[list(size) for size in sizes]})
          found.push(await decode({{ width, height }}).then((it) => [it.data[3], it.width], (error) => error.told));
        console.log(JSON.stringify([closed, found]));""",
        tmp_path,
    )
    closed, answers = json.loads(found)
    assert closed == len(sizes)
    assert answers == [
        [255, 4096],
        {"what": "browser", "values": [4096, 4097]},
        [255, 65_535],
        {"what": "long", "values": [65_536, 9, 65_535]},
        {"what": "long", "values": [9, 65_536, 65_535]},
        {"what": "large", "values": [10_001, 10_000, 100_000_000]},
    ]


@browsed
def test_only_the_answer_to_what_is_there_is_shown(browser, digits, data: Data) -> None:
    tab = Tab(browser, digits[0])
    # Answers of the worker wait in `held` until they are let in, one at a time
    tab.page.add_init_script("""window.held = [];
        const Plain = Worker;
        window.Worker = class extends Plain {
          set onmessage(hear) {
            super.onmessage = (event) => (event.data.answer ? held.push(() => hear(event)) : hear(event));
          }
        };""")
    tab.page.reload()
    tab.page.wait_for_function("() => document.getElementById('status').className.includes('good')")

    def give(picture: bytes) -> None:
        tab.page.set_input_files("#file", files=[{"name": "a", "mimeType": "image/png", "buffer": picture}])

    def let_in() -> None:
        tab.page.wait_for_function("() => held.length")
        tab.page.evaluate("held.shift()()")

    spec, images = InputSpec((28, 28), 1), data.test.images.numpy()
    first, second = (encoded(as_picture(image)) for image in images[:2])
    give(first)
    assert tab.say("label") == "…"
    tab.page.click("#clear")
    assert tab.say("label") == "No picture yet"
    let_in()
    assert (tab.say("label"), tab.bars()) == ("No picture yet", [])
    assert not tab.seen(1).any()

    give(first)
    give(second)
    let_in()
    assert (tab.say("label"), tab.bars()) == ("…", [])  # the preview is the second picture
    let_in()
    assert np.array_equal(tab.seen(1), preprocess(second, spec))
    assert tab.bars()
    give(first)
    assert (tab.say("label"), tab.bars()) == ("…", [])

    box = tab.page.locator("#pad").bounding_box()
    tab.page.mouse.move(box["x"] + 30, box["y"] + 30)
    tab.page.mouse.down()
    let_in()
    assert (tab.say("label"), tab.bars()) == ("…", [])  # a drawing has begun
    tab.page.mouse.move(box["x"] + 60, box["y"] + 90)
    let_in()
    assert tab.bars()  # a drawing is answered while it goes on
    tab.page.mouse.up()
    let_in()
    assert np.array_equal(tab.seen(1), preprocess(Image.fromarray(tab.pixels("pad")), spec))
    assert tab.complaints == []
    tab.page.close()


@browsed
def test_drawing_dropping_and_pasting(browser, digits) -> None:
    tab = Tab(browser, digits[0])
    box = tab.page.locator("#pad").bounding_box()
    spec = InputSpec((28, 28), 1)

    for i, (x, y) in enumerate([(0.3, 0.2), (0.7, 0.2), (0.45, 0.85)]):
        tab.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if i == 0:
            tab.page.mouse.down()
    tab.page.mouse.up()
    tab.answered()
    drawn = Image.fromarray(tab.pixels("pad"))
    assert np.array_equal(tab.seen(1), preprocess(drawn, spec))
    assert 0.03 < np.mean(np.asarray(drawn.convert("L")) > 127) < 0.3
    tab.page.click("#clear")
    assert (tab.say("label"), tab.bars()) == ("No picture yet", [])
    assert not tab.pixels("pad")[:, :, :3].any()
    for event, files in (("DragEvent", "dataTransfer"), ("ClipboardEvent", "clipboardData")):
        shade = Image.fromarray(np.full((28, 28), 9 * len(files), np.uint8))
        text = base64.b64encode(encoded(shade)).decode()
        script = f"""fetch('data:image/png;base64,{text}')"""  # the page itself may not: its policy
        assert tab.page.evaluate(f"{script}.then(() => 'let', () => 'refused')") == "refused"
        tab.complaints.clear()
        give = f"""const files = new DataTransfer(), bytes = Uint8Array.from(atob('{text}'), c => c.charCodeAt(0));
            files.items.add(new File([bytes], 'a.png', {{ type: 'image/png' }}));
            const kind = '{event}' === 'DragEvent' ? 'drop' : 'paste';
            window.dispatchEvent(new {event}(kind, {{ {files}: files, cancelable: true }}));"""
        tab.page.evaluate(f"{{ {give} }}")
        tab.answered()
        assert np.array_equal(tab.seen(1)[0], np.asarray(shade))
    tab.page.close()


@browsed
@pytest.mark.parametrize(
    ("word", "again", "change"),
    [
        ("model.onnx is not the one that was exported", False, lambda folder: flip(folder / "model.onnx")),
        (
            "model.json is not the one that was exported",
            False,
            lambda folder: edit(folder, lambda facts: facts["classes"].__setitem__(3, "eight")),
        ),
        ("model.json cannot be read", False, lambda folder: (folder / "model.json").unlink()),
        (
            "does not give the numbers it was trained with: logits differ by up to",
            True,
            lambda folder: edit(folder, lambda facts: facts["golden"].update(logits=moved(facts, 0.01))),
        ),
        (
            "not those of the temperature",
            True,
            lambda folder: edit(folder, lambda facts: facts["calibration"].update(temperature=3.0)),
        ),
        ("This did not work", False, lambda folder: (folder / "runtime/ort-wasm-simd-threaded.wasm").unlink()),
    ],
)
def test_a_changed_folder_classifies_nothing_and_says_why(browser, digits, site, word: str, again, change) -> None:
    folder = site[0] / "page-changed"
    shutil.copytree(digits[1], folder, dirs_exist_ok=True)
    change(folder)
    if again:
        relist(folder)
    tab = Tab(browser, f"{site[1]}page-changed/")
    assert word in tab.say("status")
    assert "bad" in tab.page.locator("#status").get_attribute("class")
    assert "It classifies nothing until that is mended" in tab.say("status")
    assert not tab.page.locator("main").is_visible()
    tab.page.set_input_files("#file", files=[{"name": "a", "mimeType": "image/png", "buffer": b"x"}])
    tab.page.click("#language")
    assert "在修复之前本页不作任何识别" in tab.say("status")
    assert not tab.page.locator("main").is_visible()
    tab.page.close()
    shutil.rmtree(folder)


def moved(facts: dict[str, Any], by: float) -> str:
    """The golden logits, one of them moved by so much of the largest."""
    logits = np.frombuffer(base64.b64decode(facts["golden"]["logits"]), "<f4").copy()
    logits[-1] += by * np.abs(logits).max()
    return base64.b64encode(logits.tobytes()).decode()


@browsed
def test_thresholds_are_those_of_predict(browser, digits, data: Data) -> None:
    predictor = Predictor.load(digits[1])
    tab = Tab(browser, digits[0])
    point = predictor.manifest.calibration.reaching(0.95)
    images = data.test.images[:200].numpy()
    rows = list(predictor.answers(images, threshold=point.threshold))
    below, above = (next(i for i, row in enumerate(rows) if (row.label == "unknown") == is_) for is_ in (True, False))
    tab.page.select_option("#promise", "0.95")
    assert f"{100 * point.coverage:.1f}".removesuffix(".0") in tab.say("coverage")
    tab.give(encoded(as_picture(images[below])))
    assert tab.say("label").startswith("Unknown: the likeliest class has")
    tab.give(encoded(as_picture(images[above])))
    assert tab.say("label").startswith(rows[above].label)
    tab.page.select_option("#promise", "always")
    assert tab.page.input_value("#threshold") == "0"
    tab.page.close()


@browsed
def test_by_keyboard_alone(browser, digits) -> None:
    tab = Tab(browser, digits[0])
    stops = []
    for _ in range(7):
        tab.page.keyboard.press("Tab")
        stops.append(tab.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        ringed = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        around = tab.page.evaluate(
            "getComputedStyle(document.activeElement.closest('label') ?? document.body).outlineStyle"
        )
        assert "solid" in (ringed, around), stops[-1]
    assert stops == ["language", "file", "clear", "top", "promise", "threshold", "A"]
    tab.give(encoded(Image.new("L", (28, 28), 60)))
    tab.page.focus("#threshold")
    tab.page.keyboard.press("Control+A")
    tab.page.keyboard.type("100")
    assert tab.say("label").startswith("Unknown")
    tab.page.focus("#language")
    tab.page.keyboard.press("Enter")
    assert tab.say("label").startswith("未知")
    assert tab.page.evaluate("document.documentElement.lang") == "zh-CN"
    tab.page.keyboard.press("Enter")
    assert tab.page.title() == "Classify a picture · ConvLens"
    unnamed = """[...document.querySelectorAll('input, select, button, canvas, ol')].filter(
        e => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map(e => e.id)"""
    assert tab.page.evaluate(unnamed) == []
    tab.page.close()


@browsed
def test_words_are_there_in_both_languages(tmp_path: Path) -> None:
    if NODE is None:
        pytest.skip("there is no node")
    found = in_node(
        f"""import {{ WORDS }} from "{PAGE}/words.js";
        const shape = (words) => Object.entries(words).map(([name, value]) =>
          typeof value === "object" ? [name, shape(value)]
            : [name, typeof value, typeof value === "string" || value.length]);
        console.log(JSON.stringify([shape(WORDS.en), shape(WORDS.zh)]));""",
        tmp_path,
    )
    english, chinese = json.loads(found)
    assert english == chinese


# The ratio of every text's colour to what lies behind it (WCAG 2.2, 1.4.3), where it is below 4.5
FAINT = """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && e.childNodes.length
    && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  let behind = e;
  while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const back = behind ? rgb(getComputedStyle(behind).backgroundColor) : [255, 255, 255];
  const [a, b] = [rgb(getComputedStyle(e).color), back].map(light);
  return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 80)];
}).filter(([ratio]) => ratio < 4.5)"""


@browsed
@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_it_fits_and_can_be_read(browser, site, locale: str) -> None:
    root, url = site
    if not (root / "page-odd").exists():
        file = make_file("lenet5", InputSpec((28, 28), 1))
        odd = ('<img src=x onerror="document.title=1">', "W" * 90, "a name of many words " * 5, "猫")
        publish(ModelFile(file.model, replace(file.manifest, classes=odd), file.golden), root / "page-odd")
    tab = Tab(browser, f"{url}page-odd/", locale=locale)
    assert tab.say("status").startswith("已检查" if locale == "zh-CN" else "Checked")
    for width, scheme, unusual in itertools.product((360, 1440), ("light", "dark"), (False, True)):
        tab.page.set_viewport_size({"width": width, "height": 900})
        tab.page.emulate_media(color_scheme=scheme)
        tab.give(encoded(Image.new("L", (60, 60), 255 * unusual)))
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
        assert tab.page.evaluate(FAINT) == []
    assert {name for name, _ in tab.bars()} >= {"猫", '<img src=x onerror="document.title=1">'}
    assert "ConvLens" in tab.page.title()
    assert tab.complaints == []
    tab.page.close()


@browsed
def test_from_the_disk_it_says_what_to_do(browser, digits) -> None:
    page = browser.new_page()
    page.goto((digits[1] / "index.html").as_uri())
    assert "python -m http.server" in page.locator("#from-disk").inner_text()
    assert page.locator("#from-disk").is_visible()
    assert not page.locator("main").is_visible()
    page.close()
