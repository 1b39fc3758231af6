"""A data set as it is, faults and all: what `check` looks at, and `load` would refuse, mend or leave out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .cache import decode
from .data import is_path, load
from .images import Facts, InputSpec
from .listing import list_pictures
from .pictures import choose_input
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
    spec = choose_input(listing.root, listing.entries, config)
    names = [entry.path for entry in listing.entries]
    decoded = decode(listing.root, names, spec, progress and (lambda done: progress(done, len(names))))
    rows = [place for place in range(len(names)) if place not in decoded.problems]
    entries = [listing.entries[place] for place in rows]
    classes = tuple(sorted({entry.label for entry in listing.entries}))
    number = {label: i for i, label in enumerate(classes)}
    return Album(
        name=path.resolve().stem if path.is_file() else path.resolve().name,
        root=listing.root,
        classes=classes,
        input=spec,
        flip_ok=spec.channels == 3,  # as in load()
        pictures=Split(
            torch.from_numpy(decoded.pixels).permute(0, 3, 1, 2),
            torch.tensor([number[entry.label] for entry in entries], dtype=torch.int64),
            torch.arange(len(entries)),
            torch.tensor(rows, dtype=torch.int64),
        ),
        names=[entry.path for entry in entries],
        splits=[entry.split for entry in entries],
        groups=[entry.group for entry in entries],
        facts=[decoded.facts[place] for place in rows],
        digests=decoded.digests[rows],
        bad=listing.bad | {names[place]: problem for place, problem in decoded.problems.items()},
        empty=listing.empty,
        passed_over=listing.passed_over,
    )


def _named(name: str, data_dir: str | Path | None) -> Album:
    loaded = load(name, Recipe(data=DataConfig(val=0.0)), data_dir)
    parts = {"train": loaded.train, "test": loaded.test}
    store = torch.cat([part.images for part in parts.values()])
    rows = store.permute(0, 2, 3, 1).contiguous().numpy()
    digests = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
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
