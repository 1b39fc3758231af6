"""Predicting as a stream: the network's own numbers in every form, any pictures whatever, and little memory."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp, softmax

from convlens import Data, InputSpec, Predictor, Recipe, Run, images, load, predict
from convlens.console import counted, err, out, passed_over_line, predictions_line, print_table
from convlens.errors import UserError
from convlens.files import writing_whole
from convlens.manifest import Manifest
from convlens.modelfile import ModelFile, load_model, save_model
from convlens.operating import LEAST
from convlens.predict import DECODERS, Prediction, pictures_in, to_csv, to_json
from refusals import refused
from test_modelfile import make_file

OLD = Path(__file__).parent / "model-before-calibration.safetensors"  # written by ConvLens at 1dba549, format 1


@pytest.fixture(scope="module")
def trained(convlens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the program made; 150 images are held out."""
    out = tmp_path_factory.mktemp("runs")
    result = convlens(
        "train", "mnist-5k", "--limit", "1500", "--epochs", "2", "--out", out, "--no-plots", "--no-report"
    )
    assert result.returncode == 0, result.stderr
    assert "ECE" in result.stderr
    return out / "mnist-5k-vgg-1"


@pytest.fixture(scope="module")
def data() -> Data:
    return load("mnist-5k", Recipe(), limit=1500)


@pytest.fixture(scope="module")
def folder(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 test digits, a damaged one, and what a folder of photographs has beside them."""
    path = tmp_path_factory.mktemp("pictures")
    for i in range(100):
        Image.fromarray(data.test.images[i, 0].numpy()).save(path / f"{i:03}.png")
    (path / "050-broken.png").write_bytes((path / "050.png").read_bytes()[:60])
    for name in ("a.HEIC", "b.heic", "c.svg", "notes.txt", ".hidden.heic"):
        (path / name).write_bytes(b"?")
    return path


@pytest.fixture
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained)


def numbers(predictor: Predictor, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and energies, from the model and the temperature alone."""
    temperature = predictor.manifest.calibration.temperature
    with torch.no_grad():
        z = load_model(predictor.shipped.path).model(pixels).double().numpy() / temperature
    return softmax(z, axis=1), -temperature * logsumexp(z, axis=1)


# What is said ---------------------------------------------------------------------------------------------------


def test_rows_are_the_models_own_numbers(predictor: Predictor, folder: Path, data: Data) -> None:
    assert predictor.manifest.calibration.temperature != 1
    rows = list(predictor.predict(pictures_in([folder]), top=3, batch_size=16))
    assert [Path(row.file).name for row in rows] == sorted(path.name for path in folder.glob("*.png"))
    bad = rows.pop(50)
    assert bad == Prediction(str(folder / "050-broken.png"), error=bad.error)
    assert "damaged" in bad.error
    probabilities, energies = numbers(predictor, data.test.images[:100])
    low, high = predictor.manifest.calibration.usual
    for row, p, e in zip(rows, probabilities, energies, strict=True):
        order = np.argsort(-p)[:3]
        assert row.label == predictor.manifest.classes[order[0]]
        assert [name for name, _ in row.top] == [predictor.manifest.classes[i] for i in order]
        assert [value for _, value in row.top] == pytest.approx(p[order], abs=1e-6)
        assert row.probability == row.top[0][1]
        assert row.energy == pytest.approx(e, abs=1e-4)
        assert row.unusual == (not low <= row.energy <= high)
    for batch_size in (1, 7, 1000):
        again = list(predictor.predict(pictures_in([folder]), 3, batch_size))
        assert [row.label for row in again if not row.error] == [row.label for row in rows]


def test_below_the_threshold_the_label_is_unknown_and_the_rest_stays(predictor: Predictor, folder: Path) -> None:
    plain = list(predictor.predict(pictures_in([folder]), 2))
    middle = float(np.median([row.probability for row in plain if row.probability is not None]))
    strict = list(predictor.predict(pictures_in([folder]), 2, threshold=middle))
    said = Counter()
    for row, other in zip(plain, strict, strict=True):
        below = row.probability is not None and row.probability < middle
        assert other == (replace(row, label="unknown") if below else row)
        said[below] += 1
    assert min(said.values()) >= 40
    for threshold in (-0.1, 1.1, float("nan")):
        refused(partial(predictor.predict, [], threshold=threshold), "from 0 to 1", f"{threshold:g}")
    pixels = np.zeros((1, 1, 28, 28), np.uint8)
    for count in (0, -1):
        refused(partial(predictor.predict, [], top=count), f"top is at least 1, not {count}")
        refused(partial(predictor.predict, [], batch_size=count), f"batch_size is at least 1, not {count}")
        refused(partial(lambda top: next(predictor.answers(pixels, top)), count), f"top is at least 1, not {count}")


def test_csv_and_json_hold_what_the_library_says(predictor: Predictor, folder: Path) -> None:
    rows = list(predictor.predict(pictures_in([folder]), 2))
    for pairs in (0, 2):
        text = "".join(to_csv(rows, pairs))
        read = list(csv.DictReader(io.StringIO(text)))
        names = [f"{what}_{rank}" for rank in range(1, pairs + 1) for what in ("label", "probability")]
        assert list(read[0]) == ["file", "label", "probability", *names, "energy", "unusual", "error"]
        for cells, row in zip(read, rows, strict=True):
            assert (cells["file"], cells["label"], cells["error"]) == (row.file, row.label, row.error)
            if row.error:
                assert not any(cells[name] for name in [*names, "probability", "energy", "unusual"])
                continue
            assert float(cells["probability"]) == pytest.approx(row.probability, abs=1e-6)
            assert float(cells["energy"]) == pytest.approx(row.energy, abs=1e-6)
            assert cells["unusual"] == str(int(bool(row.unusual)))
            for rank in range(1, pairs + 1):
                assert cells[f"label_{rank}"] == row.top[rank - 1][0]
                assert float(cells[f"probability_{rank}"]) == pytest.approx(row.top[rank - 1][1], abs=1e-6)
    text = "".join(to_json(rows))
    assert json.loads(text) == json.loads(json.dumps([asdict(row) for row in rows]))
    assert len(text.splitlines()) == len(rows) + 2  # an object a line
    assert json.loads("".join(to_json([]))) == []


def test_names_and_classes_that_are_hard_to_write() -> None:
    odd = Prediction('a "b",\n\udcff.png', 'cat, "x"', 0.5, (('cat, "x"', 0.5),), -1.5, None)
    for encoded in ("".join(part).encode(errors="backslashreplace") for part in (to_csv([odd], 1), to_json([odd]))):
        assert b"\\udcff" in encoded
    read = list(csv.reader(io.StringIO("".join(to_csv([odd], 1)))))
    assert read[1] == [odd.file, odd.label, "0.500000", odd.label, "0.500000", "-1.500000", "", ""]
    assert json.loads("".join(to_json([odd])).encode(errors="backslashreplace"))[0]["file"] == odd.file


def test_an_answer_that_is_not_finite_is_a_row_with_its_reason(predictor: Predictor, folder: Path) -> None:
    def broken(pixels: np.ndarray) -> np.ndarray:
        wrong = np.array([1, np.nan, np.inf, 1], dtype=np.float32)[: len(pixels)]
        return np.repeat(wrong[:, None], 10, axis=1)

    rows = list(
        Predictor(replace(predictor.shipped, outputs=lambda pixels: (broken(pixels), None))).predict(
            sorted(folder.glob("00*.png"))[:4]
        )
    )
    assert [bool(row.error) for row in rows] == [False, True, True, False]
    assert "not finite" in rows[1].error
    json.loads("".join(to_json(rows)))


def test_a_file_from_before_calibration_answers_with_temperature_1(tmp_path: Path) -> None:
    predictor = Predictor.load(OLD)
    file = load_model(OLD)
    images, logits = file.golden.images, file.golden.logits.astype(np.float64)
    assert file.manifest.calibration.temperature == 1
    expected = softmax(logits, axis=1)
    np.testing.assert_allclose(predictor.probabilities(images), expected, atol=1e-6)
    Image.fromarray(images[0].transpose(1, 2, 0)).save(tmp_path / "0.png")
    (row,) = predictor.predict([tmp_path / "0.png"])
    assert row.probability == pytest.approx(expected[0].max(), abs=1e-6)
    assert row.energy == pytest.approx(-logsumexp(logits[0]), abs=1e-5)
    assert row.unusual is None
    assert next(iter(csv.DictReader(io.StringIO("".join(to_csv([row]))))))["unusual"] == ""
    refused(lambda: file.manifest.calibration.reaching(0.9), "no validation images", f"{LEAST} are needed")
    save_model(tmp_path / "again.safetensors", file)
    assert Predictor.load(tmp_path / "again.safetensors").manifest == file.manifest


# What is read ---------------------------------------------------------------------------------------------------


def test_paths_are_asked_for_little_by_little_and_little_is_held(
    predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, lock = folder / "000.png", threading.Lock()
    asked = decoding = most_decoding = 0
    held: list[weakref.ref[np.ndarray]] = []

    def paths() -> Iterator[Path]:
        nonlocal asked
        for _ in range(600):
            asked += 1
            yield picture

    def watched(path: Path, spec: images.InputSpec) -> np.ndarray:
        nonlocal decoding, most_decoding
        with lock:
            decoding += 1
            most_decoding = max(most_decoding, decoding)
        time.sleep(0.0005)
        pixels = images.preprocess(path, spec).copy()
        with lock:
            decoding -= 1
            held.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(predict, "preprocess", watched)
    rows = predictor.predict(paths(), batch_size=8)
    assert asked == 0
    for done, _ in enumerate(rows, start=1):
        assert asked <= done + 8 + 16
        if done % 100 == 0:
            gc.collect()
            assert sum(pixels() is not None for pixels in held) <= 8 + 16 + 8
    assert done == asked == 600
    assert 1 < most_decoding <= DECODERS


def test_who_stops_asking_leaves_no_thread_behind(predictor: Predictor, folder: Path) -> None:
    rows = predictor.predict((folder / "000.png" for _ in range(10**9)), batch_size=8)
    next(rows)
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    rows.close()  # type: ignore[attr-defined] # a generator
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_pictures_of_a_folder_in_order_hidden_ones_passed_over(tmp_path: Path) -> None:
    wanted = ["1.png", "10.JPG", "2.webp", "a/deep/x.tiff", "a/x.jfif", "b.jpeg"]
    touch(*(tmp_path / name for name in [*wanted, ".x.png", ".git/x.png", "a/.x/y.png", "n.txt", "p.nef", "a/q.AVIF"]))
    (tmp_path / "folder.png").mkdir()
    passed_over = Counter[str]()
    found = list(pictures_in([tmp_path], passed_over))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == wanted
    assert found == sorted(found)
    assert passed_over == {".nef": 1, ".avif": 1}
    assert list(pictures_in([tmp_path / "n.txt", tmp_path / "a"])) == [tmp_path / "n.txt", *found[3:5]]


def test_paths_that_are_none_are_said_before_anything_is_read(tmp_path: Path) -> None:
    touch(tmp_path / "1.png")
    for wrong in (tmp_path / "absent", Path("x" * 5000), tmp_path / "1.png" / "below"):
        refused(lambda wrong=wrong: next(pictures_in([tmp_path, wrong])), "there is no file or folder", wrong)


@pytest.mark.skipif(sys.platform == "win32", reason="links and names of Unix")
def test_links_in_circles_dangling_ones_and_odd_names(predictor: Predictor, tmp_path: Path, data: Data) -> None:
    picture = tmp_path / "a" / "1.png"
    picture.parent.mkdir()
    Image.fromarray(data.test.images[0, 0].numpy()).save(picture)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c-self.png").symlink_to(tmp_path / "c-self.png")
    (tmp_path / "d-gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "e-pipe.png")  # reading it would wait for ever
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/f-\xff.png")).write_bytes(picture.read_bytes())
    (tmp_path / "g\n.png").write_bytes(picture.read_bytes())
    deep = tmp_path / "h"
    for _ in range(30):
        deep /= "x" * 100
    deep.mkdir(parents=True)
    (deep / "1.png").write_bytes(picture.read_bytes())
    rows = {Path(row.file).name: row for row in predictor.predict(pictures_in([tmp_path]))}
    assert [name for name, row in rows.items() if row.error] == ["c-self.png", "d-gone.png"]
    assert list(rows) == ["1.png", "c-self.png", "d-gone.png", "f-\udcff.png", "g\n.png"]
    assert len(list(pictures_in([tmp_path]))) == 6  # 1.png in a, seen once though b is a too, and the deep one
    assert len(list(pictures_in([tmp_path / "b"]))) == 6  # a link given by name, and up from there


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_is_closed_is_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png", tmp_path / "b" / "2.png")
    (tmp_path / "a").chmod(0)
    passed_over = Counter[str]()
    assert list(pictures_in([tmp_path], passed_over)) == [tmp_path / "b" / "2.png"]
    assert passed_over == {"folder that cannot be read": 1}
    (tmp_path / "a").chmod(0o700)


def test_a_folder_that_goes_while_it_is_read_is_counted(tmp_path: Path) -> None:
    touch(tmp_path / "1.png", tmp_path / "b" / "2.png")
    passed_over = Counter[str]()
    found = pictures_in([tmp_path], passed_over)
    assert next(found) == tmp_path / "1.png"
    (tmp_path / "b" / "2.png").unlink()
    (tmp_path / "b").rmdir()
    assert list(found) == []
    assert passed_over == {"folder that cannot be read": 1}


# What is counted and written ------------------------------------------------------------------------------------


def test_rows_are_counted() -> None:
    top = (("unknown", 0.9), ("cat", 0.1))
    rows = [
        Prediction("a", "unknown", 0.9, top, -1.0, True),  # a class of that name
        Prediction("b", "unknown", 0.4, (("cat", 0.4),), -1.0, False),
        Prediction("c", error="damaged"),
        Prediction("d", "cat", 0.8, (("cat", 0.8),), -1.0, None),
    ]
    counts = Counter[str]()
    assert list(counted(rows, counts, bar=True)) == rows
    assert counts == {"pictures": 4, "bad": 1, "unknown": 1, "unusual": 1}
    assert (
        predictions_line(counts, 0.5) == "3 pictures classified, 1 could not be read, 1 unknown (below 0.5), 1 unusual"
    )
    assert predictions_line(Counter(pictures=1234), None) == "1,234 pictures classified"
    assert passed_over_line(Counter({".svg": 1, ".heic": 12})).startswith("passed over: 12 .heic, 1 .svg (")


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, ValueError])
def test_output_that_fails_half_way_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.csv"
    path.write_text("older")

    def fails() -> None:
        with writing_whole(path) as file:
            file.write(b"half")
            assert path.read_text() == "older"
            raise error("no more")

    with pytest.raises(error):
        fails()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out.csv", "older")]


def test_the_program_streams_to_csv_json_and_stdout(trained: Path, folder: Path, convlens, tmp_path: Path) -> None:
    expected = list(Predictor.load(trained).predict(pictures_in([folder]), 2))
    printed = convlens("predict", trained, folder, "--top", "2")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == "".join(to_csv(expected, 2))
    unusual = sum(bool(row.unusual) for row in expected)
    assert (
        f"100 pictures classified, 1 could not be read{f', {unusual} unusual' if unusual else ''}\n" in printed.stderr
    )
    assert "passed over: 2 .heic, 1 .svg" in printed.stderr
    for name, text in (("out.csv", to_csv(expected)), ("out.json", to_json(expected))):
        result = convlens("predict", trained, folder, "-o", tmp_path / name, *(["--top", 2] if "json" in name else []))
        assert (result.returncode, result.stdout) == (0, "")
        assert (tmp_path / name).read_text(encoding="utf-8") == "".join(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.json"]


def test_the_program_says_unknown_where_validation_asks_for_it(trained: Path, folder: Path, convlens) -> None:
    calibration = Predictor.load(trained).manifest.calibration
    target = (calibration.curve[0].accuracy + calibration.curve[-1].accuracy) / 2
    point = calibration.reaching(target)
    assert point.threshold > 0
    result = convlens("predict", trained, folder, "--target-accuracy", target)
    assert result.returncode == 0, result.stderr
    rows = [row for row in csv.DictReader(io.StringIO(result.stdout)) if not row["error"]]
    for row in rows:
        assert row["label"] == (row["label_1"] if float(row["probability"]) >= point.threshold else "unknown")
        assert row["probability_1"] == row["probability"]
    unknown = sum(row["label"] == "unknown" for row in rows)
    assert f"{point.coverage:.2%} of {calibration.images} validation images reach it" in result.stderr
    assert f"{point.accuracy:.2%} of those are right" in result.stderr
    assert f"{unknown} unknown (below {point.threshold:.9g})" in result.stderr
    both = convlens("predict", trained, folder, "--target-accuracy", target, "--threshold", "0.5")
    assert (both.returncode, "give one of them" in both.stderr) == (2, True)
    old = convlens("predict", OLD, folder, "--target-accuracy", target)
    assert (old.returncode, old.stdout) == (2, "")
    assert "data.val=0.1" in old.stderr


def test_the_program_says_where_there_is_nothing_to_read(trained: Path, convlens, tmp_path: Path) -> None:
    pictures, output = tmp_path / "pictures", tmp_path / "out.csv"
    touch(pictures / "1.heic")
    nothing = convlens("predict", trained, pictures, "-o", output)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert f"convlens: no pictures in {pictures}; passed over: 1 .heic" in nothing.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    touch(pictures / "2.png")
    bad = convlens("predict", trained, pictures, "-o", output)
    assert bad.returncode == 2
    assert "0 pictures classified, 1 could not be read" in bad.stderr
    assert len(output.read_text().splitlines()) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
@pytest.mark.slow
def test_a_full_disk_leaves_the_older_output(trained: Path, folder: Path, process, tmp_path: Path) -> None:
    import resource

    output = tmp_path / "out.json"
    output.write_text("older")
    small = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (5000, 5000))
    result = process("predict", trained, folder, "-o", output, preexec_fn=small)
    assert result.returncode == 1, result.stderr
    assert "no room left" in result.stderr
    assert "Traceback" not in result.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.json", "older")]


def test_evaluate_shows_the_calibration_that_the_run_measured(trained: Path, convlens) -> None:
    stored = Run.open(trained).metrics["calibration"]
    printed = json.loads(convlens("evaluate", trained, "--json").stdout)["calibration"]
    assert set(printed) == {"temperature", "note", "val", "test"}
    assert printed["temperature"] == stored["temperature"]
    for split in ("val", "test"):
        assert printed[split] == pytest.approx(stored[split], rel=1e-4, abs=1e-6)
    line = convlens("evaluate", trained).stdout.splitlines()[-1]
    test = stored["test"]
    assert line.startswith(
        f"temperature {stored['temperature']:.3g}: ECE {test['ece']:.2%} -> {test['ece_calibrated']:.2%}"
    )


def test_explain_and_predict_say_the_same(trained: Path, folder: Path, convlens) -> None:
    (row,) = Predictor.load(trained).predict([folder / "000.png"])
    nothing = "--no-feature-maps", "--no-channels", "--method", "none"
    said = convlens("explain", trained, folder / "000.png", *nothing).stdout
    assert said == f"{folder / '000.png'}: {row.label} ({row.probability:.0%})\n"


def _file(trained: Path) -> ModelFile:
    return load_model(trained / "model.safetensors")


def test_a_damaged_calibration_is_refused(trained: Path, tmp_path: Path, monkeypatch) -> None:
    file, path = _file(trained), tmp_path / "model.safetensors"
    config = json.loads(file.manifest.to_json())
    whole = file.manifest.calibration.to_dict()
    for change in (
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": "warm"},
        {"images": None},
        {"images": 3},
        {"usual": [-1.0, float("inf")]},
        {"usual": [-1.0, -2.0]},
        {"usual": None},
        {"curve": [[0, 1]]},
        {"curve": [[0, 2, 1]]},
        {"curve": []},
        {"curve": 5},
    ):

        class Changed:
            def to_dict(self, change: dict[str, object] = change) -> dict[str, object]:
                return whole | change

        wrong = replace(file, manifest=replace(file.manifest, calibration=Changed()))  # type: ignore[arg-type] # what no ConvLens has
        refused(partial(save_model, path, wrong), "cannot be written")
        text = json.dumps(config | {"calibration": whole | change})
        with monkeypatch.context() as patch:
            patch.setattr(Manifest, "to_json", lambda _, text=text: text)
            save_model(path, file)
        refused(partial(Predictor.load, path), "is damaged")


def test_a_class_name_does_not_command_the_terminal(convlens, capsys, tmp_path: Path) -> None:
    name, shown = "\x1b[2Jcat \u202e\x9b1m\x7f", r"\u001b[2Jcat \u202e\u009b1m\u007f"
    file = make_file("lenet5", InputSpec((28, 28), 1))
    classes = tuple(f"{name}{i}" for i in range(len(file.manifest.classes)))
    save_model(tmp_path / "model.safetensors", replace(file, manifest=replace(file.manifest, classes=classes)))
    Image.new("L", (28, 28)).save(tmp_path / "black.png")

    piped = convlens("predict", tmp_path, tmp_path / "black.png").stdout
    (row,) = csv.DictReader(io.StringIO(piped, newline=""))
    assert row["label"] in classes
    (row,) = json.loads(convlens("predict", tmp_path, tmp_path / "black.png", "--json").stdout)
    assert row["label"] in classes

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "convlens", "predict", tmp_path, tmp_path / "black.png"]
    subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=400, check=True)
    os.close(theirs)
    printed = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert shown in printed
    assert set(printed) & {"\x1b", "\x9b", "\u202e", "\x7f"} == set()

    capsys.readouterr()
    print_table(name, ("class", name), [(name, name)])
    out.print(name)
    err.print(name)
    convlens_error = convlens("predict", tmp_path / name, tmp_path / "black.png").stderr
    text = "".join(capsys.readouterr()) + convlens_error
    assert text.count(shown) >= 6
    assert set(text) & {"\x1b", "\x9b", "\u202e", "\x7f"} == set()
