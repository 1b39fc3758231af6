"""What was found to be wrong, in words: each fault with its files, how bad it is, and what to do. Those of files,
classes and splits are found here, the others where they are measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from .album import Album
from .recipe import DataConfig

BAD_SHARE = DataConfig.max_bad  # of the files may be unusable: more stop a training, too
TINY = 20  # training pictures: with fewer, 15 % held out are less than three to test with
IMBALANCE = 10  # times as many pictures in the largest class as in the smallest; a rule of thumb
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".tif": "TIFF"}  # other endings are their format's name


@dataclass(frozen=True)
class Item:
    """Files that belong together, such as the copies of one picture, or a single one, and what is to be said of it."""

    files: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of fault: `what` is a sentence that says what was found `count` times, `todo` one that says what to do.
    An `error` makes a result wrong or stops a training, a `warning` should be looked at, a `note` is to be known."""

    kind: str
    severity: Literal["error", "warning", "note"]
    count: int
    what: str
    todo: str
    items: tuple[Item, ...] = ()


def number(count: int, noun: str) -> str:
    """`1 picture`, `2 classes`, `3,000 copies`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def single(album: Album, places: Iterable[int], notes: Iterable[str]) -> tuple[Item, ...]:
    """An item a picture."""
    return tuple(Item((album.names[place],), note) for place, note in zip(places, notes, strict=True))


# Files ----------------------------------------------------------------------------------------------------------


def of_files(album: Album) -> Iterator[Finding]:
    """Files that cannot be used, that are not what their name says, or of which only a part is used."""
    if album.bad:
        share = len(album.bad) / (len(album.bad) + len(album))
        yield Finding(
            "bad-files",
            "error" if share > BAD_SHARE else "warning",
            len(album.bad),
            f"{number(len(album.bad), 'file')} ({share:.1%}) cannot be used",
            "Get them anew, convert them or delete them; a training leaves them out, and stops above "
            f"{BAD_SHARE:.0%} of them.",
            tuple(Item((name,), reason) for name, reason in sorted(album.bad.items())),
        )
    named = [(album.names[place], fact) for place, fact in enumerate(album.facts) if fact]
    lies = []
    for name, fact in named:
        ending = PurePosixPath(name).suffix.lower()
        kind = "JPEG" if fact.format == "MPO" else fact.format  # how Pillow calls the JPEGs of some phones
        if kind != _FORMATS.get(ending, ending[1:].upper()):
            lies.append(Item((name,), f"is {kind}"))
    if lies:
        yield Finding(
            "wrong-endings",
            "note",
            len(lies),
            f"{number(len(lies), 'file')} of another format than the name ends in",
            "Rename them: ConvLens reads the content, but other programs go by the name.",
            tuple(lies),
        )
    moving = [Item((name,), fact.format) for name, fact in named if fact.frames]
    if moving:
        yield Finding(
            "frames",
            "note",
            len(moving),
            f"{number(len(moving), 'file')} with several frames or pages",
            "Only the first frame is used; save the others as files of their own if they are wanted.",
            tuple(moving),
        )
    if album.passed_over:
        kinds = album.passed_over.most_common()
        yield Finding(
            "passed-over",
            "note",
            album.passed_over.total(),
            f"{number(album.passed_over.total(), 'file')} passed over",
            "Nothing, unless pictures of yours are among them: move those into the folder of their class.",
            tuple(Item((), f"{kind}: {count:,}") for kind, count in kinds),
        )


# Classes and splits ---------------------------------------------------------------------------------------------


def counts(album: Album) -> dict[str, dict[str, int]]:
    """Usable pictures of every class in every split; the split is called "all" where the data set names none."""
    splits: list[str] = [split for split in ("train", "val", "test") if split in album.splits] or ["all"]
    found = {label: dict.fromkeys(splits, 0) for label in album.classes}
    for label, split in zip(album.pictures.labels.tolist(), album.splits, strict=True):
        found[album.classes[label]][split or "all"] += 1
    return found


def of_classes(album: Album) -> Iterator[Finding]:
    """Classes that are missing, tiny or far larger than others, and groups that stand in two splits."""
    table = counts(album)
    splits = list(next(iter(table.values())))
    first = splits[0]  # what is trained on
    present = [label for label, row in table.items() if sum(row.values())]
    lacking = [
        Item((), f"{split} has none of {label}") for label in present for split in splits if not table[label][split]
    ]
    if first not in ("train", "all"):
        yield Finding("no-training-split", "error", 1, "There is no training split", "Call one of the splits train.")
    if lacking:
        yield Finding(
            "missing-classes",
            "error",
            len(lacking),
            "The splits have different classes",
            "Give every split the same classes, or name no splits and let ConvLens make them.",
            tuple(lacking),
        )
    if len(present) < 2:
        yield Finding(
            "one-class", "error", 1, f"{number(len(present), 'class')} with usable pictures", "Two are needed."
        )
    none = [Item((), label) for label in album.classes if label not in present]
    none += [Item((), folder) for folder in album.empty]
    if none:
        yield Finding(
            "empty-classes",
            "error",
            len(none),
            f"{number(len(none), 'class')} without a usable picture",
            "Add pictures, or take the folder away: a class without pictures is not learnt.",
            tuple(none),
        )
    tiny = {label: table[label][first] for label in present if 0 < table[label][first] < TINY}
    if tiny:
        yield Finding(
            "tiny-classes",
            "warning",
            len(tiny),
            f"{number(len(tiny), 'class')} with fewer than {TINY} pictures to train on",
            "Collect more, or join them with another class: their accuracy cannot be told from so few.",
            tuple(Item((), f"{label}: {count}") for label, count in tiny.items()),
        )
    sizes = sorted((table[label][first], label) for label in present if table[label][first])
    if sizes and sizes[-1][0] >= IMBALANCE * sizes[0][0]:
        yield Finding(
            "imbalance",
            "warning",
            1,
            f"{sizes[-1][1]} has {sizes[-1][0] / sizes[0][0]:.0f} times as many pictures as {sizes[0][1]}",
            "Collect more of the small classes, and judge by macro F1 or recall, not by accuracy.",
        )
    yield from _of_groups(album)


def _of_groups(album: Album) -> Iterator[Finding]:
    members = defaultdict(list)
    for place, group in enumerate(album.groups):
        if group:
            members[group].append(place)
    torn = []
    for group, places in sorted(members.items()):
        splits = sorted({album.splits[place] for place in places})
        if len(splits) > 1:
            torn.append(Item(tuple(album.names[place] for place in places), f"{group} is in {' and '.join(splits)}"))
    if torn:
        yield Finding(
            "group-leak",
            "error",
            len(torn),
            f"{number(len(torn), 'group')} in more than one split",
            "Put each group into one split: else the test asks for what was seen in training.",
            tuple(torn),
        )
