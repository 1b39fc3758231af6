"""verify: what was changed is found, in every format, by its seal or, where it was sealed anew, beside its run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convlens as api
from convlens import RECIPES, InputSpec, Run, build, load, verify
from convlens.errors import GATE
from convlens.exporting import TARGETS
from convlens.formats import Shipped
from convlens.manifest import Golden, Manifest
from convlens.modelfile import ModelFile, load_model, save_model
from convlens.onnxexport import Answering, export_onnx, to_onnx
from convlens.onnxfile import load_onnx
from convlens.pt2file import export_pt2
from convlens.quantizing import quantised
from convlens.replaying import Check, golden_checks
from convlens.verifying import _answers, allowance
from refusals import refused
from runs import fit_undrawn
from test_modelfile import make_file, some_images

pytestmark = pytest.mark.usefixtures("operators_read_once")
FORMATS = [to for to in TARGETS if to != "web"]  # the page needs a package of npm: see test_web.py
NAMES = {"safetensors": "model.safetensors", **{to: f"export/{TARGETS[to]}" for to in FORMATS}}
CHANGES = ["weight", "class", "mean"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on 600 digits, with its exports."""
    settings = {"epochs": 6, "batch_size": 32, "model.args": {"widths": [8, 16], "convs": 1}, "device": "cpu"}
    recipe = RECIPES["quick"].override(settings)
    run = fit_undrawn(recipe, load("mnist-5k", recipe, limit=600), tmp_path_factory.mktemp("runs"))
    api.export(run.path, FORMATS)
    return run


def failed(checks: tuple[Check, ...]) -> list[str]:
    return [check.name for check in checks if check.passed is False]


@pytest.mark.parametrize("to", NAMES)
def test_what_left_is_sound(to: str, run: Run, convlens) -> None:
    path = run.path / NAMES[to]
    found = verify(path, against=run.path)
    assert found.passed
    names = {check.name for check in found.checks}
    assert names >= {"seal", "golden batch", "classes", "calibration", "same answers", "test set"}
    assert all(check.passed for check in found.checks)
    assert found.expected == pytest.approx(run.metrics["test"]["accuracy"])
    if to != "onnx-int8":
        assert found.accuracy == found.expected
        assert found.disagreements == ()
    done = convlens("verify", path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["passed"] is True


def altered(file: ModelFile, change: str) -> ModelFile:
    """Another network, or other names, with the golden logits that it gives itself."""
    manifest = file.manifest
    with torch.no_grad():
        if change == "weight":
            file.model.network.classifier[-1].weight[3, 0] += 9
        elif change == "mean":
            file.model.normalize.shift -= 0.7
        else:
            manifest = replace(manifest, classes=("zero", *manifest.classes[1:]))
    return answering(replace(file, manifest=manifest))


def answering(file: ModelFile) -> ModelFile:
    """With the golden logits that its network gives now."""
    return replace(file, golden=Golden(file.golden.images, file.logits(file.golden.images)))


def written(file: ModelFile, to: str, folder: Path, images: np.ndarray) -> Path:
    path = folder / Path(NAMES[to]).name
    if to == "safetensors":
        save_model(path, file)
    elif to == "pt2":
        path.write_bytes(export_pt2(file))
    else:
        path.write_bytes(quantised(file, to_onnx(file), images) if to == "onnx-int8" else export_onnx(file))
    return path


@pytest.mark.parametrize(
    ("to", "change"),
    [
        pytest.param(to, change, marks=() if change == "weight" or to == "safetensors" else pytest.mark.slow)
        for to in NAMES
        for change in CHANGES
    ],
)
def test_what_was_sealed_anew_is_found_beside_its_run(to: str, change: str, run: Run, tmp_path: Path, convlens) -> None:
    file = altered(load_model(run.path / "model.safetensors"), change)
    path = written(file, to, tmp_path, run.load_data().train.images[:100].contiguous().numpy())
    assert verify(path).passed  # it is whole in itself
    done = convlens("verify", path, "--against", run.path, "--json")
    assert done.returncode == GATE
    wrong = [check["name"] for check in json.loads(done.stdout)["checks"] if check["passed"] is False]
    assert wrong == ["classes", "names"] if change == "class" else "same answers" in wrong


# What stands in the bytes of a file for what, of the run in the fixture: a weight, the names of two classes, the mean
def edited(data: bytes, file: ModelFile, change: str) -> bytes:
    """The same number of bytes, one thing in them changed as with a hex editor."""
    if change == "class":
        for old, new in ((b'"0", "1"', b'"1", "0"'), (b'\\"0\\", \\"1\\"', b'\\"1\\", \\"0\\"')):
            data = data.replace(old, new)
        return data
    tensor = file.model.normalize.shift if change == "mean" else file.model.network.classifier[-1].weight
    old = tensor.detach().numpy().astype("<f4").tobytes()[:4]
    assert data.count(old) == 1
    return data.replace(old, np.float32(2.5).tobytes())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("to", ["safetensors", "onnx", "pt2"])
def test_bytes_that_were_edited_are_found_by_the_seal(to: str, change: str, run: Run, tmp_path: Path, convlens) -> None:
    original = run.path / NAMES[to]
    data = original.read_bytes()
    other = edited(data, load_model(run.path / "model.safetensors"), change)
    assert other != data
    assert len(other) == len(data)
    path = tmp_path / original.name
    path.write_bytes(other)
    done = convlens("verify", path)
    assert done.returncode == GATE
    assert "was changed after it was sealed" in done.stdout
    assert "is NOT sound" in done.stdout


@pytest.mark.parametrize("args", [{}, {"members": 2}, {"members": 2, "mirror": True}], ids=str)
def test_the_logits_of_an_int8_file_are_no_steps(args: dict[str, Any], tmp_path: Path) -> None:
    """256 of them would make ties; also where networks answer together."""
    spec = InputSpec((12, 14), 3)
    file = make_file("vgg", spec, args={"widths": [4, 6], "convs": 1, **args})
    path = written(file, "onnx-int8", tmp_path, some_images(64, spec).numpy())
    logits = load_onnx(path).outputs(some_images(600, spec, seed=7).numpy())[0]
    assert min(len(np.unique(each)) for each in logits.T) > 300


def test_every_byte_of_an_int8_file_is_sealed(run: Run, tmp_path: Path) -> None:
    data = (run.path / NAMES["onnx-int8"]).read_bytes()
    path = tmp_path / "model.onnx"
    random = np.random.default_rng(0)
    for place in random.integers(0, len(data), 40).tolist():
        other = bytearray(data)
        other[place] ^= 1 << int(random.integers(8))
        path.write_bytes(other)
        try:
            found = verify(path)
        except api.UserError:
            continue  # it is no .onnx any more
        assert "seal" in failed(found.checks)


def test_golden_logits_that_are_not_given_any_more_are_found(run: Run, tmp_path: Path) -> None:
    """The seal holds, what is in the file does not agree with itself."""
    file = load_model(run.path / "model.safetensors")
    golden = Golden(file.golden.images, file.golden.logits + np.float32(0.01) * np.abs(file.golden.logits).max())
    for to in ("safetensors", "onnx", "pt2"):
        found = verify(written(replace(file, golden=golden), to, tmp_path, golden.images))
        assert failed(found.checks) == ["golden batch"]


class Tampered(torch.nn.Module):
    """What leaves, with other probabilities: of a temperature of 7, or of the class before."""

    def __init__(self, file: ModelFile, how: str) -> None:
        super().__init__()
        self.inner, self.how = Answering(file), how

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, probabilities = self.inner(images)
        return logits, (logits / 7).softmax(1) if self.how == "temperature" else probabilities.roll(1, 1)


@pytest.mark.parametrize("how", ["temperature", pytest.param("rolled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("to", ["onnx", "pt2", pytest.param("onnx-int8", marks=pytest.mark.slow)])
def test_other_probabilities_are_found(
    to: str, how: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits are right and the seal holds; they alone are not what the metadata says."""
    monkeypatch.setattr("convlens.onnxexport.Answering", lambda file: Tampered(file, how))
    images = run.load_data().train.images[:100].contiguous().numpy()
    path = written(load_model(run.path / "model.safetensors"), to, tmp_path, images)
    found = verify(path, against=run.path)
    assert failed(found.checks) == ["probabilities", "test set's probabilities"]
    assert failed(verify(path).checks) == ["probabilities"]


def test_a_run_that_was_edited_is_not_exported(run: Run, tmp_path: Path, convlens) -> None:
    """Its file would leave with a seal that holds."""
    path = tmp_path / "model.safetensors"
    file = load_model(run.path / "model.safetensors")
    path.write_bytes(edited((run.path / "model.safetensors").read_bytes(), file, "weight"))
    for to in ("onnx", "pt2"):
        refused(lambda to=to: api.export(path, to, tmp_path / "out"), "after it was sealed", path, exit_code=GATE)
    assert not (tmp_path / "out").exists()
    assert convlens("export", path).returncode == GATE
    other = written(answering(load_model(path)), "onnx", tmp_path, np.empty(0))  # as who exported it all the same
    assert verify(other).passed
    assert failed(verify(other, against=path).checks) == ["the run's seal"]


@pytest.mark.parametrize(
    ("spec", "classes", "words"),
    [
        (InputSpec((20, 20), 1), 10, "(1, 28, 28), the file takes (1, 20, 20)"),
        pytest.param(InputSpec((28, 28), 3), 10, "(1, 28, 28), the file takes (3, 28, 28)", marks=pytest.mark.slow),
        (InputSpec((28, 28), 1), 4, "10 classes, the file 4"),
    ],
)
def test_a_run_of_another_network_is_no_traceback(
    spec: InputSpec, classes: int, words: str, run: Run, tmp_path: Path, convlens
) -> None:
    names = tuple("abcdefghij"[:classes])
    model = build("vgg", channels=spec.channels, classes=classes, size=spec.size, args={"widths": [4], "convs": 1})
    manifest = Manifest("vgg", {"widths": [4], "convs": 1}, spec, names, {}, {})
    images = np.zeros((2, spec.channels, *spec.size), np.uint8)
    file = answering(ModelFile(model.eval(), manifest, Golden(images, np.empty(0))))
    path = written(file, "onnx", tmp_path, np.empty(0))
    done = convlens("verify", path, "--against", run.path, "--json")
    assert (done.returncode, done.stderr) == (GATE, "")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["same answers"]["passed"] is False
    assert words in checks["same answers"]["said"]
    assert checks["test set"]["passed"] is None
    assert "not looked at: the run" in checks["test set"]["said"]


@pytest.mark.parametrize(("apart", "passed"), [(0.02, None), (0.5, False)])
def test_labels_of_int8_are_for_the_test_set_to_judge(apart: float, passed: bool | None, run: Run) -> None:
    """Rounding moves logits by more than a tie: that one label is another proves nothing, that the logits are does."""
    manifest, images = load_model(run.path / "model.safetensors").manifest, np.zeros((1, 1, 28, 28), np.uint8)
    logits, expected = (np.array([[0.5, second] + [0.0] * 8], np.float32) for second in (0.5 - apart, 0.5 + apart))
    small = Shipped(Path("a"), "onnx", manifest, Golden(images, logits), _fixed(logits), "int8")
    check = _answers(small, replace(small, outputs=_fixed(expected), precision="fp32"))
    assert check.passed is passed
    assert "2 labels differ" in check.said


@pytest.mark.parametrize(("margin", "sound"), [(5e-5, True), (5e-4, False)])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_only_a_tie_may_have_another_label(precision: str, margin: float, sound: bool, run: Run) -> None:
    """Whatever the logits may be apart: a label is another one where the two lie within 1e-4."""
    images = np.zeros((1, 1, 28, 28), np.uint8)
    expected = np.array([[0.5, 0.5 - margin] + [0.0] * 8], np.float32)
    logits = expected[:, [1, 0, *range(2, 10)]]
    manifest = load_model(run.path / "model.safetensors").manifest
    (check,) = golden_checks(Shipped(Path("a"), "onnx", manifest, Golden(images, expected), _fixed(logits), precision))
    assert check.passed is sound


def _fixed(logits: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, None]]:
    return lambda images: (np.tile(logits, (len(images), 1)), None)


def test_what_int8_may_lose_does_not_grow_with_what_it_loses() -> None:
    assert allowance(10_000, 0.9) == 50
    assert allowance(649, 0.65) == pytest.approx(3.245)
    assert allowance(100, 0.9) == pytest.approx(3)  # a standard error: sqrt(100 * 0.9 * 0.1)
    assert allowance(100, 1.0) == 0.5


def test_the_run_that_int8_disagrees_with_a_lot_may_lose_no_more(run: Run, tmp_path: Path) -> None:
    """Labels that differ are no excuse: the more of them there were, the more it could lose."""
    file = altered(load_model(run.path / "model.safetensors"), "mean")
    path = written(file, "onnx-int8", tmp_path, run.load_data().train.images[:100].contiguous().numpy())
    found = verify(path, against=run.path)
    (check,) = [each for each in found.checks if each.name == "test set"]
    allowed = allowance(100, found.expected)
    assert f"int8 may lose {allowed / 100:.1%}" in check.said
    assert check.passed is (round((found.expected - found.accuracy) * 100) <= allowed)


def test_a_tie_is_said_to_be_one(run: Run, tmp_path: Path) -> None:
    """Two classes whose logits are equal but for rounding: another order of summing may name either."""
    file = load_model(run.path / "model.safetensors")
    last = file.model.network.classifier[-1]
    with torch.no_grad():
        last.weight[1], last.bias[1] = last.weight[0], last.bias[0]
    save_model(tmp_path / "a.safetensors", answering(file))
    with torch.no_grad():
        last.bias[1] += 1e-5
    save_model(tmp_path / "b.safetensors", answering(file))
    found = verify(tmp_path / "b.safetensors", tmp_path / "a.safetensors", data="mnist-5k")
    zeros = [each for each in found.disagreements if each.expected == "0"]
    assert found.passed
    assert len(zeros) > 50
    assert all(each.label == "1" for each in zeros)
    assert all(each.tie and each.margin < 1e-4 for each in found.disagreements)


def test_a_disagreement_that_is_no_tie_fails(run: Run, tmp_path: Path, convlens) -> None:
    file = load_model(run.path / "model.safetensors")
    with torch.no_grad():
        file.model.network.classifier[-1].bias[4] += 0.5
    path = written(answering(file), "onnx", tmp_path, np.empty(0))
    found = verify(path, against=run.path)
    assert "test set" in failed(found.checks)
    one = next(each for each in found.disagreements if not each.tie)
    assert (one.label, one.image[:5]) == ("4", "test:")
    assert one.expected != "4"
    assert 1e-4 < one.margin < 0.5
    done = convlens("verify", path, "--against", run.path)
    assert done.returncode == GATE
    assert "Where the file and the run differ" in done.stdout


def test_the_test_set_without_the_run(run: Run) -> None:
    """`data` alone: the accuracy is the one that the file names; other images than those are refused."""
    path = run.path / "export/model.onnx"
    refused(lambda: verify(path, data="mnist-5k"), "1,000 test images", "measured on 100")


def test_data_that_is_elsewhere_is_said(run: Run, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    seen = json.loads((copy / "environment.json").read_text())
    seen["data"]["sha256"] = "0" * 64
    (copy / "environment.json").write_text(json.dumps(seen))
    found = verify(copy / "export/model.onnx", against=copy)
    assert found.passed
    last = found.checks[-1]
    assert (last.name, last.passed) == ("test set", None)
    assert "not looked at: the data set mnist-5k" in last.said
    refused(lambda: api.export(copy, "onnx-int8", tmp_path / "out"), "onnx-int8 is calibrated", "mnist-5k")


def test_what_is_no_such_file(tmp_path: Path, convlens) -> None:
    for name in ("absent.onnx", "absent.pt2", "absent.safetensors", "absent"):
        done = convlens("verify", tmp_path / name)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    (tmp_path / "text.onnx").write_text("no model at all")
    (tmp_path / "text.pt2").write_text("no model at all")
    for name in ("text.onnx", "text.pt2"):
        assert "is not a" in refused(lambda name=name: verify(tmp_path / name), name)
    refused(lambda: verify(tmp_path), "holds no model.safetensors")


@pytest.fixture
def page(run: Run, tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes((run.path / "export/model.onnx").read_bytes())
    return tmp_path


def test_a_folder_with_an_onnx_in_it(page: Path, run: Run) -> None:
    assert verify(page, against=run.path).path == page / "model.onnx"


@pytest.mark.parametrize("to", FORMATS)
def test_export_leaves_no_file_that_failed(to: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the exporter wrote is of another network: with other weights, and names."""
    other = altered(load_model(run.path / "model.safetensors"), "mean")
    writers: dict[str, Callable[..., bytes]] = {
        "export_onnx": lambda *_: export_onnx(other),
        "export_pt2": lambda _: export_pt2(other),
        "quantised": lambda _, __, images: quantised(other, to_onnx(other), images),
    }
    for name, writer in writers.items():
        monkeypatch.setattr(f"convlens.exporting.{name}", writer)
    refused(lambda: api.export(run.path, to, tmp_path), "is not kept", "same answers", exit_code=GATE)
    assert list(tmp_path.iterdir()) == []


def test_a_new_export_replaces_an_old_one_and_flags_are_checked(run: Run, tmp_path: Path, convlens) -> None:
    target = tmp_path / "mine.onnx"
    target.write_bytes(b"older")
    done = convlens("export", run.path, "--out", target)
    assert (done.returncode, done.stdout) == (0, f"{target}\n")
    assert "8 labels equal" in done.stderr or "16 labels equal" in done.stderr
    assert target.stat().st_size > 1000
    refused(lambda: api.export(run.path, "onxn"), "unknown format 'onxn'", "onnx")
    refused(lambda: api.export(run.path, "pt2", target), "let its name end in .pt2")
    refused(lambda: api.export(run.path, ["onnx", "pt2"], target), "is one file")
    refused(lambda: api.export(run.path / "model.safetensors", "onnx-int8"), "give the run")


def test_the_cost_of_int8_is_told(run: Run, tmp_path: Path, convlens) -> None:
    done = convlens("export", run.path, "--to", "onnx-int8", "--out", tmp_path)
    assert done.returncode == 0
    for word in ("times smaller", "times as fast", "test accuracy", "float32 has"):
        assert word in done.stderr
