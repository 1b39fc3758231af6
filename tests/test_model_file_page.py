"""docs/model-file.md, held: its Python reads files with safetensors alone, and its keys and limits are the code's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from convlens.manifest import DEPTH, FORMAT, IMAGES, ITEMS, SIDE
from convlens.modelfile import TENSORS, load_model, seal_holds
from convlens.tensors import HEADER

PAGES = [Path(__file__).parent.parent / "docs" / name for name in ("model-file.md", "model-file.zh-CN.md")]
HERE = Path(__file__).parent
FILES = {1: HERE / "model-before-calibration.safetensors", 2: HERE / "model-2.safetensors"}


def block(page: Path) -> str:
    return re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]  # type: ignore[index] # a page without its block fails


@pytest.mark.parametrize("version", FILES)
def test_its_python_reads_every_version(version: int) -> None:
    page: dict = {}
    exec(compile(block(PAGES[0]), "model-file.md", "exec"), page)
    found, config, tensors = page["read"](FILES[version])
    file = load_model(FILES[version])
    assert found == version
    assert (config["builder"], config["classes"]) == (file.manifest.builder, list(file.manifest.classes))
    assert config["input"]["size"] == list(file.manifest.input.size)
    assert np.array_equal(tensors["golden.logits"], file.golden.logits)
    weights = {name: value for name, value in tensors.items() if name.startswith("model.")}
    state = file.model.state_dict()
    assert weights.keys() == {f"model.{name}" for name in state}
    for name, value in weights.items():
        assert np.array_equal(value, state[name.removeprefix("model.")].numpy())


def test_its_seal_is_ours(tmp_path: Path) -> None:
    page: dict = {}
    exec(compile(block(PAGES[0]), "model-file.md", "exec"), page)
    good, path = FILES[2].read_bytes(), tmp_path / "m.safetensors"
    for place in (None, len(good) - 1, 8 + good[8:].index(b"builder")):
        path.write_bytes(good if place is None else good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert page["seal_holds"](path) is seal_holds(path) is (place is None)


def test_its_python_needs_no_torch() -> None:
    code = f"import sys\n{block(PAGES[0])}\nread({str(FILES[2])!r})\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_key_of_a_file_is_on_the_page_and_the_pages_are_twins() -> None:
    python: dict = {}
    exec(block(PAGES[0]), python)
    _, config, tensors = python["read"](FILES[2])
    with safe_open(FILES[2], framework="numpy") as file:
        keys = [*file.metadata(), *config, *(f"input.{key}" for key in config["input"])]
    keys += [f"calibration.{key}" for key in config["calibration"]]
    keys += [name for name in tensors if not name.startswith("model.network.")]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for key in keys:
            assert f"`{key}`" in text or (key == "input" and "`input.size`" in text), (page.name, key)
        for limit in (f"{HEADER:,}", f"{TENSORS:,}", f"{SIDE:,}", str(IMAGES), str(DEPTH), f"{ITEMS:,}", f"`{FORMAT}`"):
            assert re.search(rf"(?<![\w,]){limit}(?![\w,])", text), (page.name, limit)
        for target in re.findall(r"\]\(([^):#]+)\)", text):
            assert (page.parent / target).exists(), target
    assert block(PAGES[0]) == block(PAGES[1])
