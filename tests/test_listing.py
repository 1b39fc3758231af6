"""A folder or a CSV becomes a list of labelled files; what is wrong is named, and nothing is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convlens import UserError
from convlens.listing import classes_of, list_pictures, split_named
from convlens.recipe import DataConfig


def make(root: Path, *names: str) -> Path:
    """Files that only look like pictures: a listing opens none."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def listed(path: Path, **config: object) -> list[tuple[str, str, str, str]]:
    return [(e.path, e.label, e.split, e.group) for e in list_pictures(path, DataConfig(**config)).entries]


def test_a_folder_a_class(tmp_path) -> None:
    make(
        tmp_path,
        "b/2.JPG",
        "b/1.png",
        "a/deep/er/3.webp",
        "a/.hidden.jpg",
        ".git/x/y.jpg",
        "__MACOSX/a/1.jpg",
        "a/n.txt",
    )
    assert listed(tmp_path) == [
        ("a/deep/er/3.webp", "a", "", ""),
        ("b/1.png", "b", "", ""),
        ("b/2.JPG", "b", "", ""),
    ]
    assert list_pictures(tmp_path).passed_over == {"hidden": 3, "a .txt file": 1}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("Train_png", "train"),
        ("VALID", "val"),
        ("val-2", "val"),
        ("validation", "val"),
        ("testing", "test"),
        ("my test", "test"),
        ("trains", None),
        ("train_test", None),
        ("latest", None),
    ],
)
def test_names_of_splits(name, split) -> None:
    assert split_named(name) == split


def test_splits_above_the_classes(tmp_path) -> None:
    make(tmp_path, "Train_png/a/1.png", "Train_png/b/1.png", "VALIDATION/a/x/2.png", "testing/b/3.png", "extra/a/1.png")
    make(tmp_path, "Train_png/stray.png", "stray.png")
    assert listed(tmp_path) == [
        ("Train_png/a/1.png", "a", "train", ""),
        ("Train_png/b/1.png", "b", "train", ""),
        ("VALIDATION/a/x/2.png", "a", "val", ""),
        ("testing/b/3.png", "b", "test", ""),
    ]
    assert list_pictures(tmp_path).passed_over == {
        "a picture outside of every class folder": 2,
        "a picture in extra, which is no split": 1,
    }


def test_a_class_may_be_called_train(tmp_path) -> None:
    make(tmp_path, "train/1.png", "plane/1.png", "car/sub/1.png")
    assert [label for _, label, _, _ in listed(tmp_path)] == ["car", "plane", "train"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["val/a/1.png", "test/a/1.png"], "no training folder"),
        (["train/1.png", "test/2.png"], "no class folders"),
        (["train/a/1.png", "Training/a/1.png", "test/a/1.png"], "2 folders for the split train"),
        ([], "lists no pictures"),
        (["a/1.txt"], "lists no pictures"),
        (["1.png", "2.png"], "no class folders: put each class"),
    ],
)
def test_structures_that_are_refused(tmp_path, names, said) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(UserError, match=said):
        list_pictures(make(root, *names))


def test_what_cannot_be_used_is_named(tmp_path) -> None:
    root = make(tmp_path / "data", "a/1.jpg", "b/2.jpg", "b/phone.HEIC")
    outside = make(tmp_path / "elsewhere", "secret.jpg") / "secret.jpg"
    (root / "a" / "out.jpg").symlink_to(outside)
    (root / "a" / "folder").symlink_to(outside.parent)
    (root / "a" / "again").symlink_to(root / "b")
    (root / "a" / "in.jpg").symlink_to(root / "b" / "2.jpg")
    (root / "a" / "loop.jpg").symlink_to(root / "a" / "loop.jpg")
    (root / "a" / "gone.jpg").symlink_to(root / "a" / "nothing.jpg")
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "folder.jpg").mkdir()
    found = list_pictures(root)
    assert [e.path for e in found.entries] == ["a/1.jpg", "a/in.jpg", "b/2.jpg"]
    assert found.bad.keys() == {
        "a/out.jpg", "a/folder", "a/loop.jpg", "a/gone.jpg", "a/pipe.jpg", "b/phone.HEIC",
    }  # fmt: skip
    assert found.bad["a/out.jpg"] == found.bad["a/folder"] == "a link out of the folder"
    assert found.bad["a/pipe.jpg"] == "not a regular file"
    assert found.bad["b/phone.HEIC"] == "HEIC is not read: convert it to JPEG or PNG"
    assert found.bad["a/gone.jpg"] == "cannot be read: No such file or directory"
    assert found.passed_over == {"a link to a folder": 1}


def test_a_name_that_is_not_utf8_and_one_spelling_of_a_class(tmp_path) -> None:
    make(tmp_path, "cafe\u0301/1.jpg", "z/2.jpg")  # macOS writes e and its accent apart
    odd = os.fsencode(tmp_path) + b"/z/\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    found = list_pictures(tmp_path)
    assert [e.label for e in found.entries] == ["caf\u00e9", "z", "z"]
    assert os.fsencode(found.entries[-1].path) == b"z/\xff.jpg"


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv(tmp_path) -> None:
    make(tmp_path, "x/1.jpg", "2.jpg", "3.jpg")
    path = table(
        tmp_path / "all.csv", "label,path,group,split\ncat, x/1.jpg ,anna,Train\ndog,2.jpg,,test\ndog,3.jpg,ben,TRAIN\n"
    )
    assert listed(path) == [
        ("2.jpg", "dog", "test", ""),
        ("3.jpg", "dog", "train", "ben"),
        ("x/1.jpg", "cat", "train", "anna"),
    ]


def test_a_csv_of_another_habit(tmp_path) -> None:
    """A byte order mark, semicolons, other names, Windows' slashes."""
    make(tmp_path, "x/1.jpg", "2.jpg")
    (tmp_path / "all.csv").write_bytes("\ufefffile;species;owner\r\nx\\1.jpg;cat;anna\r\n2.jpg;dog;ben\r\n".encode())
    found = listed(tmp_path / "all.csv", path_column="file", label_column="species", group_column="owner")
    assert found == [("2.jpg", "dog", "", "ben"), ("x/1.jpg", "cat", "", "anna")]


@pytest.mark.parametrize("place", ["flat/labels.csv", "labels.csv"])
@pytest.mark.parametrize("prefix", ["", "flat/"])
def test_a_flat_folder_with_a_csv(tmp_path, place, prefix) -> None:
    if place == "flat/labels.csv" and prefix:
        pytest.skip("paths are relative to the CSV, or to the folder")
    make(tmp_path, "flat/1.jpg", "flat/2.jpg")
    table(tmp_path / place, f"path,label\n{prefix}1.jpg,cat\n{prefix}2.jpg,dog\n")
    assert [e.label for e in list_pictures(tmp_path / "flat").entries] == ["cat", "dog"]


def test_rows_that_cannot_be_used(tmp_path) -> None:
    make(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "d.jpg").mkdir()
    rows = ["1.jpg,a", "2.jpg,b", "2.jpg,b", "3.jpg,a", "3.jpg,b", "no.jpg,a", "d.jpg,a"]
    found = list_pictures(table(tmp_path / "all.csv", "path,label\n" + "\n".join(rows) + "\n"))
    assert [e.path for e in found.entries] == ["1.jpg", "2.jpg"]
    assert found.bad == {
        "2.jpg": "listed twice",
        "3.jpg": "listed twice, as a and as b",
        "no.jpg": "cannot be read: No such file or directory",
        "d.jpg": "not a regular file",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,klass\n1.jpg,a\n", "no column 'label' but 'path', 'klass'; --label-column NAME says"),
        ("path,label\n", "no rows"),
        ("", "no column 'path'"),
        ("path,label\n1.jpg,\n", "line 2: the label is empty"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label,split\n1.jpg,a,trian\n", "unknown split in .*did you mean 'train'"),
        ("path,label,split\n1.jpg,a,train\n2.jpg,a,\n", "line 3: no split, but other rows have one"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, said) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(UserError, match=said):
        list_pictures(table(tmp_path / "all.csv", text))


def test_a_table_that_is_none(tmp_path) -> None:
    (tmp_path / "all.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(UserError, match="not a CSV in UTF-8"):
        list_pictures(tmp_path / "all.csv")
    with pytest.raises(UserError, match="neither a folder of pictures nor a"):
        list_pictures(table(tmp_path / "all.txt", "x"))
    with pytest.raises(UserError, match="there is no folder or file"):
        list_pictures(tmp_path / "nothing")


def test_the_training_split_pins_the_classes(tmp_path) -> None:
    make(tmp_path, "train/b/1.png", "train/a/1.png", "val/a/1.png", "val/b/1.png")
    assert classes_of(list_pictures(tmp_path).entries, tmp_path) == ("a", "b")
    make(tmp_path, "test/b/1.png", "test/c/1.png")
    with pytest.raises(UserError, match="test has c, which train lacks and lacks a, which train has"):
        classes_of(list_pictures(tmp_path).entries, tmp_path)


def test_one_class_is_none(tmp_path) -> None:
    make(tmp_path, "unzipped/1.png")
    with pytest.raises(UserError, match="1 class"):
        classes_of(list_pictures(tmp_path).entries, tmp_path)
