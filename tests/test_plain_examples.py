"""The two plain examples, in processes of their own: the rows of `convlens predict`, without ConvLens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens import InputSpec, Predictor
from convlens.onnxexport import export_onnx
from convlens.webexport import COPIED, write_web
from test_modelfile import make_file

WAYS = [(1, "crop"), pytest.param((3, "fit"), marks=pytest.mark.slow), (3, "stretch")]
EXAMPLES = Path(__file__).parent.parent / "examples" / "onnx"
ORT = os.environ.get("CONVLENS_ORT_WEB", "")  # where npm has put onnxruntime-web and pngjs, for the tests

pytestmark = pytest.mark.usefixtures("operators_read_once")


@pytest.fixture(scope="module", params=WAYS, ids=str)
def web(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page's folder, with a runtime that nobody runs."""
    channels, resize = request.param
    folder = tmp_path_factory.mktemp("exported")
    file = make_file("lenet5", InputSpec((28, 32), channels, resize))
    (folder / "model.onnx").write_bytes(export_onnx(file))
    write_web(folder / "model.onnx", folder / "web", {name: b"" for name, _ in COPIED.values()})
    return folder / "web"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PNGs of several sizes and kinds; the last has the size that the network takes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(4)
    sizes = [(90, 61), (33, 70), (20, 20), (28, 32)]
    pixels = [rng.integers(0, 256, (*size, 4), dtype=np.uint8) for size in sizes]
    kinds = ["RGB", "RGBA", "L", "LA", "P"]
    made = []
    for i, kind in enumerate(kinds * len(sizes)):
        picture = Image.fromarray(pixels[i % len(sizes)])
        picture = picture.convert("RGB").quantize(16) if kind == "P" else picture.convert(kind)
        made.append(folder / f"{i}.png")
        picture.save(made[-1])
    return made


def same_rows(printed: str, web: Path, pictures: list[Path]) -> None:
    rows = [line.split(",") for line in printed.splitlines()]
    expected = list(Predictor.load(web).predict(pictures))
    assert [row[:2] for row in rows] == [[row.file, row.label] for row in expected]
    assert [float(row[2]) for row in rows] == pytest.approx([row.probability for row in expected], abs=2e-6)
    assert len({row[2] for row in rows}) > len(rows) / 2


def test_in_python(web: Path, pictures: list[Path], tmp_path: Path) -> None:
    photo = Image.open(pictures[0]).convert("RGB").resize((640, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=exif)
    deep = np.random.default_rng(5).integers(0, 65_536, (50, 40), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "16-bit.png")
    given = [*pictures, tmp_path / "photo.jpg", tmp_path / "16-bit.png"]
    command = [sys.executable, "-W", "error", EXAMPLES / "predict.py", web / "model.onnx", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    same_rows(done.stdout, web, given)


@pytest.mark.skipif(
    not (ORT and shutil.which("node")), reason="needs node, and onnxruntime-web and pngjs in CONVLENS_ORT_WEB"
)
def test_in_javascript(web: Path, pictures: list[Path], tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "predict.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(Path(ORT) / "node_modules")
    command = ["node", tmp_path / "predict.mjs", web, *pictures]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    same_rows(done.stdout, web, pictures)


def test_they_are_short() -> None:
    for path, most in ((EXAMPLES / "predict.py", 40), (EXAMPLES / "predict.mjs", 30)):
        assert len(path.read_text().splitlines()) <= most
