"""convlens check: every kind of fault planted, counted by hand, in a folder, a CSV and a named data set."""

from __future__ import annotations

import base64
import csv
import functools
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import convlens as api
from convlens import checkpage
from convlens.checking import Report, check
from convlens.recipe import DataConfig

COLOURS = {"blue": (60, 80, 180), "green": (70, 170, 80), "red": (180, 80, 70)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path_factory.mktemp("cache")))


@functools.cache
def scene(seed: int, colour: tuple[int, ...] = (128, 128, 128), size: tuple[int, int] = (80, 80)) -> Image.Image:
    """A picture like no other, coarse and fine, around a colour."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3)) + colour
    for cells, strength in ((3, 40), (8, 30), (20, 15), (max(size) // 2, 10)):
        noise = np.clip(128 + strength * random.standard_normal((cells, cells, 3)), 0, 255).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), float) - 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **settings: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)


def album(
    root: Path, each: int = 24, splits: tuple[str, ...] = ("train", "test"), size: tuple[int, int] = (80, 80)
) -> Path:
    """`each` pictures of every class in every split; `splits=("",)` names none."""
    for s, split in enumerate(splits):
        for c, (name, colour) in enumerate(COLOURS.items()):
            for i in range(each):
                save(scene(10_000 * s + 1000 * c + i, colour, size), root / split / name / f"{i:03}.jpg", quality=92)
    return root


def found(report: Report) -> dict[str, tuple[str, int]]:
    assert all(finding.what and finding.todo.endswith(".") for finding in report.findings)
    return {finding.kind: (finding.severity, finding.count) for finding in report.findings}


def files(report: Report, kind: str) -> list[tuple[str, ...]]:
    return [item.files for finding in report.findings if finding.kind == kind for item in finding.items]


def notes(report: Report, kind: str) -> list[str]:
    return [item.note for finding in report.findings if finding.kind == kind for item in finding.items]


def test_a_clean_folder_has_no_finding(tmp_path) -> None:
    report = check(album(tmp_path), labels=False)
    assert report.findings == ()
    assert report.clean
    assert report.to_dict()["counts"] == {name: {"train": 24, "test": 24} for name in COLOURS}


def test_every_fault_of_files_and_looks(tmp_path) -> None:
    root = album(tmp_path)
    (root / "train/red/001.jpg").write_bytes((root / "train/red/001.jpg").read_bytes()[:900])
    (root / "train/red/002.jpg").write_bytes(b"")
    (root / "test/blue/x.heic").write_bytes(b"x")
    (root / "train/notes.txt").write_text("x")
    save(Image.new("RGB", (80, 80), (200, 10, 10)), root / "train/green/blank.png")
    save(scene(1).point(lambda v: v // 9), root / "test/green/dark.png")
    save(scene(2).filter(ImageFilter.GaussianBlur(9)), root / "test/green/blur.png")
    save(scene(3, size=(700, 60)), root / "train/blue/banner.png")
    save(scene(4).convert("L"), root / "train/blue/gray.png")
    save(scene(5), root / "train/blue/lie.jpg", format="PNG")
    frames = [scene(seed) for seed in (6, 7)]
    save(frames[0], root / "train/blue/moving.gif", save_all=True, append_images=frames[1:])
    report = check(root, labels=False)
    assert found(report) == {
        "bad-files": ("warning", 3),
        "blank": ("warning", 1),
        "dark": ("warning", 1),
        "wrong-endings": ("note", 1),
        "frames": ("note", 1),
        "passed-over": ("note", 1),
        "blurred": ("note", 1),
        "odd-sizes": ("note", 1),
        "odd-modes": ("note", 2),
    }
    assert files(report, "bad-files") == [("test/blue/x.heic",), ("train/red/001.jpg",), ("train/red/002.jpg",)]
    assert notes(report, "bad-files")[0] == "HEIC is not read: convert it to JPEG or PNG"
    assert files(report, "blank") == [("train/green/blank.png",)]
    assert files(report, "dark") == [("test/green/dark.png",)]
    assert files(report, "blurred") == [("test/green/blur.png",)]
    assert files(report, "odd-sizes") == [("train/blue/banner.png",)]
    assert notes(report, "odd-sizes") == ["60 x 700"]
    assert files(report, "odd-modes") == [("train/blue/gray.png",), ("train/blue/moving.gif",)]
    assert (files(report, "wrong-endings"), notes(report, "wrong-endings")) == ([("train/blue/lie.jpg",)], ["is PNG"])
    assert files(report, "frames") == [("train/blue/moving.gif",)]
    assert notes(report, "passed-over") == ["a .txt file: 1"]


def test_copies_within_and_across_splits_and_labels(tmp_path) -> None:
    root = album(tmp_path)
    shutil.copy(root / "train/red/003.jpg", root / "train/red/again.jpg")
    save(Image.open(root / "train/red/004.jpg").resize((60, 60)), root / "train/red/small.png")
    shutil.copy(root / "train/red/005.jpg", root / "test/red/leak.jpg")
    save(Image.open(root / "train/red/006.jpg"), root / "test/red/leak2.jpg", quality=40)
    shutil.copy(root / "train/red/007.jpg", root / "train/blue/two.jpg")
    save(Image.open(root / "train/red/008.jpg").point(lambda v: v * 0.8), root / "test/green/both.png")
    report = check(root, labels=False)
    assert found(report) == {
        "copies-across-splits": ("error", 3),
        "two-labels": ("error", 2),
        "exact-copies": ("warning", 1),
        "near-copies": ("warning", 1),
    }
    assert files(report, "exact-copies") == [("train/red/003.jpg", "train/red/again.jpg")]
    assert files(report, "near-copies") == [("train/red/004.jpg", "train/red/small.png")]
    assert sorted(files(report, "copies-across-splits")) == [
        ("test/green/both.png", "train/red/008.jpg"),
        ("test/red/leak.jpg", "train/red/005.jpg"),
        ("test/red/leak2.jpg", "train/red/006.jpg"),
    ]
    assert dict(zip(files(report, "two-labels"), notes(report, "two-labels"), strict=True)) == {
        ("test/green/both.png", "train/red/008.jpg"): "nearly the same, labelled green and red",
        ("train/blue/two.jpg", "train/red/007.jpg"): "identical, labelled blue and red",
    }


def test_mirrored_copies_where_asked(tmp_path) -> None:
    root = album(tmp_path, splits=("",))
    save(Image.open(root / "red/004.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT), root / "red/turned.png")
    assert found(check(root, labels=False)) == {}
    report = check(root, labels=False, mirrored=True)
    assert files(report, "near-copies") == [("red/004.jpg", "red/turned.png")]


def test_blank_pictures_are_not_also_copies(tmp_path) -> None:
    root = album(tmp_path, splits=("",))
    for name in ("red", "blue"):
        for i in range(3):
            save(Image.new("RGB", (80, 80)), root / name / f"black{i}.png")
    assert found(check(root, labels=False)) == {"blank": ("warning", 6)}


def test_classes_that_are_missing_tiny_and_empty(tmp_path) -> None:
    root = album(tmp_path / "data", 200, size=(32, 32))
    shutil.rmtree(root / "test/red")
    for i in range(19):
        save(scene(500 + i, size=(32, 32)), root / f"train/few/{i}.png")
    save(scene(999, size=(32, 32)), root / "test/few/0.png")
    (root / "train/none").mkdir()
    (root / "train/broken").mkdir()
    (root / "train/broken/1.png").write_bytes(b"")
    report = check(root, labels=False)
    assert found(report) == {
        "missing-classes": ("error", 1),
        "empty-classes": ("error", 2),
        "bad-files": ("warning", 1),
        "tiny-classes": ("warning", 1),
        "imbalance": ("warning", 1),
    }
    assert notes(report, "missing-classes") == ["test has none of red"]
    assert notes(report, "empty-classes") == ["broken", "train/none"]
    assert notes(report, "tiny-classes") == ["few: 19"]


def test_one_class_and_no_usable_picture(tmp_path) -> None:
    root = album(tmp_path / "one", splits=("",))
    shutil.rmtree(root / "red")
    shutil.rmtree(root / "blue")
    assert found(check(root)) == {"one-class": ("error", 1)}
    for path in (root / "green").iterdir():
        path.write_bytes(b"")
    report = check(root)
    assert found(report) == {"bad-files": ("error", 24), "one-class": ("error", 1), "empty-classes": ("error", 1)}
    assert "24 files" in checkpage.page(report)


def table(path: Path, rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "person"), *rows])
    return path


def test_a_csv_whose_groups_leak(tmp_path) -> None:
    root = album(tmp_path)
    rows = []
    for path in sorted(root.rglob("*.jpg")):
        split, label, name = path.relative_to(root).parts
        rows.append((path.relative_to(root).as_posix(), label, split, f"{split}-{int(name[:3]) % 5}"))
    rows[0] = (*rows[0][:3], "train-1")  # a test picture of somebody in train
    report = check(table(tmp_path / "all.csv", rows), DataConfig(group_column="person"), labels=False)
    assert found(report) == {"group-leak": ("error", 1)}
    assert notes(report, "group-leak") == ["train-1 is in test and train"]
    assert rows[0][0] in files(report, "group-leak")[0]
    assert len(files(report, "group-leak")[0]) == 1 + 15
    only = [(path, label, "test", person) for path, label, _, person in rows]
    assert found(check(table(tmp_path / "test.csv", only), labels=False)) == {"no-training-split": ("error", 1)}


def test_wrong_labels(tmp_path) -> None:
    root = album(tmp_path, 40, splits=("",), size=(18, 18))
    wrong = [("red", "blue", 7), ("green", "red", 8), ("blue", "green", 9), ("red", "green", 10)]
    for own, other, i in wrong:
        (root / own / f"{i:03}.jpg").rename(root / other / f"wrong{i}.jpg")
    said: list[str] = []
    report = check(root, tell=said.append)
    assert found(report).keys() == {"wrong-labels"}
    assert {name for (name,) in files(report, "wrong-labels")} >= {f"{other}/wrong{i}.jpg" for _, other, i in wrong}
    assert len(files(report, "wrong-labels")) <= 6
    assert report.labels
    assert any(note.startswith("labelled blue, looks like red") for note in notes(report, "wrong-labels"))
    assert len(said) == 8


def test_copies_teach_nothing_of_labels(tmp_path) -> None:
    for i in range(120):
        save(scene(0), tmp_path / ("red" if i % 2 else "blue") / f"{i}.png")
    report = check(tmp_path)
    assert found(report) == {"two-labels": ("error", 1)}
    assert not report.labels


def test_a_named_data_set() -> None:
    report = check("mnist-5k", labels=False)
    told = report.to_dict()
    assert (told["pictures"], told["bad"], told["sizes"]) == (5000, 0, None)
    assert {label: row["train"] + row["test"] for label, row in told["counts"].items()} == dict.fromkeys(
        "0123456789", 500
    )
    assert all(name.startswith(("train:", "test:")) for name in report.album.names)
    for group in files(report, "exact-copies"):  # named as `convlens explain` names them
        part, place = group[0].split(":")
        assert part in ("train", "test")
        assert place.isdecimal()
    assert report.album.root is None
    assert "data:image/png" in checkpage.page(report) or report.clean


# The program ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    root = album(tmp_path_factory.mktemp("faulty data") / "<b>&flowers", 24)
    shutil.copy(root / "train/red/005.jpg", root / "test/red/leak.jpg")
    save(Image.new("RGB", (80, 80), "white"), root / "train/green/blank.png")
    (root / "train/blue/bad.jpg").write_bytes(b"no picture")
    shutil.copy(root / "train/red/006.jpg", root / "train/red/<i>.jpg")
    return root


def test_the_terminal_names_files_and_what_to_do(convlens, faulty) -> None:
    result = convlens("check", faulty, "--no-labels")
    assert result.returncode == 0, result.stderr
    assert "error: 1 picture with copies in more than one split  [copies-across-splits]" in result.stdout
    assert "test/red/leak.jpg = train/red/005.jpg: identical, in test and train" in result.stdout
    assert "-> Keep each in one split" in result.stdout
    assert "errors: 1, warnings: 3, notes: 0" in result.stdout
    assert result.stdout.splitlines()[:3:2] == ["<b>&flowers: 147 pictures", "class  train  test"]


def test_json_and_html_and_strict(convlens, faulty, tmp_path) -> None:
    html = tmp_path / "page.html"
    result = convlens("check", faulty, "--no-labels", "--json", "--strict", "--html", html)
    assert result.returncode == 3, result.stderr
    told = json.loads(result.stdout)
    assert told.keys() == {
        "data", "pictures", "bad", "counts", "input", "sizes", "modes", "formats", "labels_checked", "seconds",
        "severities", "findings",
    }  # fmt: skip
    assert told["severities"] == {"error": 1, "warning": 3, "note": 0}
    order = [finding["severity"] for finding in told["findings"]]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    for finding in told["findings"]:
        assert finding.keys() == {"kind", "severity", "count", "what", "todo", "items"}
        assert all(item.keys() == {"files", "note"} for item in finding["items"])
    parsed = Page(html.read_text(encoding="utf-8"))
    assert parsed.problems == []
    assert len(parsed.pictures) == 2 + 1 + 2  # a leak, a blank one, a copy
    for uri in parsed.pictures:
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert (image.format, image.size) == ("JPEG", (96, 96))
    assert parsed.addresses <= {f"#{finding['kind']}" for finding in told["findings"]}
    assert "train/red/<i>.jpg" in parsed.text
    assert "<b>&flowers" in parsed.text
    assert "the file is not a picture that can be read" in parsed.text


class Page(HTMLParser):
    """What a page shows and asks for; `problems` are tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.pictures: list[str] = []
        self.addresses: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        self.problems += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.pictures.append(given["src"] or "")
            assert given["alt"]
        if "href" in given:
            self.addresses.add(given["href"] or "")
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_strict_passes_what_has_notes_only(convlens, tmp_path) -> None:
    root = album(tmp_path)
    (root / "readme.txt").write_text("x")
    result = convlens("check", root, "--no-labels", "--strict")
    assert result.returncode == 0, result.stderr
    assert "notes: 1" in result.stdout


def test_what_is_refused(convlens, tmp_path) -> None:
    for arguments, said in (
        (("nothing",), "unknown data set 'nothing'"),
        ((tmp_path,), "lists no pictures"),
        (("mnist-5k", "--html", tmp_path / "no" / "page.html"), "there is no folder"),
    ):
        result = convlens("check", *arguments)
        assert result.returncode == 2
        assert said in result.stderr
        assert "Traceback" not in result.stderr


def test_a_page_shows_at_most_so_many(tmp_path, monkeypatch) -> None:
    root = album(tmp_path, splits=("",))
    for i in range(30):
        save(Image.new("RGB", (80, 80), (i, 0, 0)), root / "red" / f"blank{i}.png")
    monkeypatch.setattr(checkpage, "SHOWN", 12)
    page = Page(checkpage.page(check(root, labels=False)))
    assert len(page.pictures) == 12
    assert "12 of 30" in page.text


def test_the_data_is_left_as_it_was(tmp_path) -> None:
    root = album(tmp_path, 8, splits=("",))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}
    api.check(root, labels=False)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")} == before
