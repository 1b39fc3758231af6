"""A data set as it is, faults and all: what `check` looks at, and `load` would refuse, mend or leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .cache import digest
from .data import is_path, load
from .images import Facts, InputSpec
from .listing import list_pictures
from .pictures import decode_entries, name_of
from .recipe import DataConfig, Recipe
from .splits import Split


@dataclass(frozen=True)
class Album:
    """`pictures` are those that can be used, with labels that count `classes`; `names`, `splits`, `groups`, `facts` and
    `digests` (uint8 (N, 16), equal where the pixels are) are theirs, in the same order.

    A picture's name is its path below `root`, or `train:7` in a data set that is no folder (`root` is None then, and
    the facts are too). A split is "" where the data set names none. `bad` maps files that cannot be used to the reason,
    `empty` are class folders without a picture, `passed_over` counts what is no picture, by kind.
    """

    name: str
    root: Path | None
    classes: tuple[str, ...]
    input: InputSpec
    flip_ok: bool
    pictures: Split
    names: list[str]
    splits: list[str]
    groups: list[str]
    facts: list[Facts | None]
    digests: np.ndarray
    bad: dict[str, str]
    empty: list[str]
    passed_over: Counter[str]

    def __len__(self) -> int:
        return len(self.names)

    def label(self, place: int) -> str:
        return self.classes[int(self.pictures.labels[place])]


def open_album(
    data: str | Path,
    config: DataConfig | None = None,
    data_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Album:
    """A folder, a CSV or a named data set. Pictures of your own are decoded as `load` decodes them for this `config`,
    so a training that follows finds them in the cache; `progress` is that of `load`.

    Raises:
        UserError: there is no such thing, or not one file that could be a picture of a class.
    """
    if is_path(data):
        return _own(Path(data).expanduser(), config or DataConfig(), progress)
    return _named(str(data), data_dir)


def _own(path: Path, config: DataConfig, progress: Callable[[int, int], None] | None) -> Album:
    listing = list_pictures(path, config)
    read = decode_entries(listing, listing.entries, config, progress)
    classes = tuple(sorted({entry.label for entry in listing.entries}))
    return Album(
        name=name_of(path),
        root=listing.root,
        classes=classes,
        input=read.input,
        flip_ok=read.flip_ok,
        pictures=read.labelled(classes),
        names=[entry.path for entry in read.entries],
        splits=[entry.split for entry in read.entries],
        groups=[entry.group for entry in read.entries],
        facts=[*read.facts],
        digests=read.digests,
        bad=read.bad,
        empty=listing.empty,
        passed_over=listing.passed_over,
    )


def _named(name: str, data_dir: str | Path | None) -> Album:
    loaded = load(name, Recipe(data=DataConfig(val=0.0)), data_dir)
    parts = {"train": loaded.train, "test": loaded.test}
    store = torch.cat([part.images for part in parts.values()])
    rows = store.permute(0, 2, 3, 1).contiguous().numpy()
    digests = b"".join(map(digest, rows))
    splits = [split for split, part in parts.items() for _ in range(len(part))]
    return Album(
        name=loaded.name,
        root=None,
        classes=loaded.classes,
        input=loaded.input,
        flip_ok=loaded.flip_ok,
        pictures=Split(store, torch.cat([part.labels for part in parts.values()]), torch.arange(len(store))),
        names=[f"{split}:{i}" for split, part in parts.items() for i in range(len(part))],
        splits=splits,
        groups=[""] * len(store),
        facts=[None] * len(store),
        digests=np.frombuffer(digests, np.uint8).reshape(-1, 16),
        bad={},
        empty=[],
        passed_over=Counter(),
    )
