"""From a folder or a CSV to a list of labelled files. Nothing is decoded here, and nothing of the user's is changed."""

from __future__ import annotations

import csv
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .errors import UserError, unknown
from .images import PICTURES, UNREAD
from .recipe import DataConfig

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})  # what other systems hide by other means than a dot


@dataclass(frozen=True)
class Entry:
    """One labelled file: its `path` as the listing's root sees it, with forward slashes. `split` is "train", "val",
    "test", or "" where the data set says nothing; `group` holds what must stay on one side (a person, a plant)."""

    path: str
    label: str
    split: str = ""
    group: str = ""


@dataclass
class Listing:
    """Every file that could be a picture of a class, in the order of their paths. `bad` maps those that cannot be used,
    known before any is opened, to the reason; `passed_over` counts what is none, by kind; `empty` are the folders of
    classes without any."""

    root: Path
    entries: list[Entry] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)


def list_pictures(path: str | Path, config: DataConfig | None = None) -> Listing:
    """The listing of a folder (`<class>/*`, or `train|val|test/<class>/*`), a CSV, or a flat folder with a CSV in or
    beside it.

    Raises:
        UserError: there is no such thing, no picture, or a structure that could mean two things.
    """
    path, config = Path(path).expanduser(), config or DataConfig()
    if not path.exists():
        raise UserError(f"there is no folder or file {path}")
    if path.is_dir():
        found = _list_folder(path) or _list_csv(_csv_of(path), config, path)
    elif path.suffix.lower() in (".csv", ".tsv"):
        found = _list_csv(path, config)
    else:
        raise UserError(f"{path} is neither a folder of pictures nor a .csv that lists them")
    if not found.entries:
        bad = f"; {len(found.bad):,} cannot be used, such as {next(iter(found.bad.items()))}" if found.bad else ""
        raise UserError(f"{path} lists no pictures (JPEG, PNG, WebP, GIF, TIFF or BMP){bad}")
    found.entries.sort(key=lambda entry: entry.path)
    return found


# Folders --------------------------------------------------------------------------------------------------------


def split_named(folder: str) -> str | None:
    """The split that a folder's name stands for: `Train`, `validation` and `test_png` do, `trains` does not."""
    words = {SPLITS[word] for word in re.split(r"[^a-z]+", folder.lower()) if word in SPLITS}
    return words.pop() if len(words) == 1 else None


def _list_folder(root: Path) -> Listing | None:
    """None where the folder has no class folders but pictures, which then a CSV must label."""
    found = Listing(root)
    # Parts of names, and no Path for each: that took half of the time of listing
    paths = [tuple(path.split("/")) for path in _pictures(root, found)]
    tops = sorted({path[0] for path in paths if len(path) > 1})
    if paths and not tops:
        return None
    splits = {top: split for top in tops if (split := split_named(top))}
    trains = [top for top, split in splits.items() if split == "train"]
    # A class may be called train, too: then its pictures lie in it, or no other folder is called like a split
    below = {path[:2] for path in paths if path[0] in trains and len(path) > 2}
    layered = len(below) > 1 and (len(tops) == 1 or len(splits) > 1)
    if splits and len(splits) == len(tops) and not layered:
        lacking = "has pictures, but no class folders, in" if trains else "has no training folder, only"
        raise UserError(f"{root} {lacking} {', '.join(trains or tops)}; below each split there is a folder a class")
    for split in set(splits.values()) if layered else ():
        same = [top for top in tops if splits.get(top) == split]
        if len(same) > 1:
            raise UserError(f"{root} has {len(same)} folders for the split {split}: {', '.join(same)}")
    for path in paths:
        if len(path) < 2 + layered:
            found.passed_over["a picture outside of every class folder"] += 1
        elif layered and path[0] not in splits:
            found.passed_over[f"a picture in {path[0]}, which is no split"] += 1
        else:
            found.entries.append(Entry("/".join(path), _label(path[layered]), splits[path[0]] if layered else ""))
    full = {path[: 1 + layered] for path in paths}
    for above in splits if layered else ("",):
        for folder in sorted(path for path in (root / above).iterdir() if path.is_dir() and not _hidden(path.name)):
            if folder.relative_to(root).parts not in full and not folder.is_symlink():
                found.empty.append(folder.relative_to(root).as_posix())
    return found


def _pictures(folder: Path, found: Listing, above: str = "") -> Iterator[str]:
    """The pictures below a folder, however deep; what cannot be used goes into `found.bad`. Names begin `above`."""
    for entry in _visible(folder, found):
        name = above + entry.name
        try:
            if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(found.root.resolve()):
                found.bad[name] = "a link out of the folder"
            elif entry.is_dir():
                if entry.is_symlink():
                    found.passed_over["a link to a folder"] += 1  # its pictures are found where they lie
                else:
                    yield from _pictures(Path(entry.path), found, f"{name}/")
            elif (kind := _kind(entry.name)) == "picture":
                if stat.S_ISREG(entry.stat().st_mode):
                    yield name
                else:
                    found.bad[name] = "not a regular file"
            elif kind == "unread":
                found.bad[name] = f"{Path(name).suffix[1:].upper()} is not read: convert it to JPEG or PNG"
            else:
                found.passed_over[kind] += 1
        except (OSError, RuntimeError) as error:  # a dangling or circular link, a folder that may not be entered
            found.bad[name] = f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _visible(folder: Path, found: Listing) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, hidden things counted and left out."""
    try:
        with os.scandir(folder) as entries:
            everything = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if folder == found.root:
            raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
        found.bad[folder.relative_to(found.root).as_posix()] = f"cannot be read: {error.strerror}"
        return []
    seen = [entry for entry in everything if not _hidden(entry.name)]
    if len(seen) < len(everything):
        found.passed_over["hidden"] += len(everything) - len(seen)
    return seen


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _kind(name: str) -> str:
    """`picture`, `unread` (a picture of a format that is not read), or how a file that is no picture is counted."""
    _, dot, ending = name.lower().rpartition(".")
    ending = dot and ending and f".{ending}"
    if ending in PICTURES:
        return "picture"
    return "unread" if ending in UNREAD else f"a {ending} file" if ending else "a file without an ending"


def _label(name: str) -> str:
    """A class's name: one spelling of it, whichever system (macOS takes letters and accents apart) wrote it."""
    return unicodedata.normalize("NFC", name)


# CSV ------------------------------------------------------------------------------------------------------------


def _csv_of(folder: Path) -> Path:
    """The one CSV in a flat folder, or the one beside it."""
    inside = sorted(path for path in folder.glob("*.[cC][sS][vV]") if not _hidden(path.name))
    beside = sorted(path for path in folder.resolve().parent.glob("*.[cC][sS][vV]") if not _hidden(path.name))
    for found in (inside, beside):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:5])
            raise UserError(f"{folder} could be labelled by {names}: give the one that is meant in its place")
    raise UserError(
        f"{folder} has pictures but no class folders: put each class into a folder of its own, or give a CSV with the "
        "columns path and label"
    )


def _list_csv(path: Path, config: DataConfig, folder: Path | None = None) -> Listing:
    """Paths are taken from the CSV's folder, or from `folder` where its first row's lies there."""
    columns = {
        "path": config.path_column,
        "label": config.label_column,
        "split": config.split_column,
        "group": config.group_column,
    }
    rows = list(_rows(path, columns))
    if not rows:
        raise UserError(f"{path} has a header but no rows")
    root = path.parent
    if folder and not (root / rows[0][1]["path"]).is_file() and (folder / rows[0][1]["path"]).is_file():
        root = folder
    found = Listing(root)
    first: dict[str, str] = {}
    parted = [bool(row.get("split")) for _, row in rows]
    if any(parted) and not all(parted):
        line = rows[parted.index(False)][0]
        raise UserError(f"{path}, line {line}: no split, but other rows have one; give all rows one, or none")
    for line, row in rows:
        name, label, split = row["path"].replace("\\", "/"), row["label"], row.get("split", "")
        if not name or not label:
            raise UserError(f"{path}, line {line}: the {'label' if name else 'path'} is empty")
        if split and not (split := split_named(split) or ""):
            raise unknown(f"split in {path}, line {line},", row["split"], SPLITS)
        if name in first:
            if first[name] != label:
                found.bad[name] = f"listed twice, as {first[name]} and as {label}"
                found.entries = [entry for entry in found.entries if entry.path != name]
            found.bad.setdefault(name, "listed twice")
            continue
        first[name] = label
        try:
            regular = stat.S_ISREG((root / name).stat().st_mode)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in a name
            found.bad[name] = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            continue
        if not regular:
            found.bad[name] = "not a regular file"
        else:
            found.entries.append(Entry(name, _label(label), split, row.get("group", "")))
    return found


def _rows(path: Path, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, what stands in the columns that there are) of every row of a CSV."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            for key, name in columns.items():
                optional = key in ("split", "group") and name == key
                if name not in names and not optional:
                    flag = f"; --{key}-column NAME says which holds it" if name == key else ""
                    raise UserError(f"{path} has no column {name!r} but {', '.join(map(repr, names))}{flag}")
            for row in reader:
                yield reader.line_num, {key: (row.get(name) or "").strip() for key, name in columns.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV in UTF-8: {error}") from error


# Checks ---------------------------------------------------------------------------------------------------------


def classes_of(entries: list[Entry], where: str | Path) -> tuple[str, ...]:
    """The sorted class names, pinned by the training split.

    Raises:
        UserError: fewer than two classes, or a class that the training or another split lacks; both sides are listed.
    """
    of_split: dict[str, set[str]] = {}
    for entry in entries:
        of_split.setdefault(entry.split or "train", set()).add(entry.label)
    classes = tuple(sorted(of_split.get("train", ())))
    for split, labels in sorted(of_split.items()):
        new, missing = sorted(labels - set(classes)), sorted(set(classes) - labels)
        if new or missing:
            said = [f"has {_some(new)}, which train lacks"] if new else []
            said += [f"lacks {_some(missing)}, which train has"] if missing else []
            raise UserError(
                f"the classes of {where} differ between its splits: {split} {' and '.join(said)}; give every split the "
                "same classes, or no splits and let ConvLens make them"
            )
    if len(classes) < 2:
        raise UserError(f"{where} has {len(classes)} class with usable training pictures; there must be two or more")
    return classes


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
