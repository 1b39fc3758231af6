"""Your own pictures: a folder or a CSV -> splits of decoded images, with all that was decided on the way said."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from .cache import Decoded, decode
from .errors import UserError
from .images import InputSpec, facts
from .listing import Entry, Listing, classes_of, list_pictures
from .recipe import DataConfig, Recipe
from .splits import Split, hold_out

SIDE = 64  # pixels; larger pictures are brought to this unless a size is asked for: enough to start with, and fast
LOOKED_AT = 500  # headers that are read to choose the size
MEASURED = 4096  # training images that mean and standard deviation are taken from
_GRAY = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


@dataclass(frozen=True)
class Pictures:
    """`files` are the paths below `root` that `Split.index` counts, `bad` those that cannot be used with the reason,
    `said` the sentences that a person should read before training."""

    root: Path
    classes: tuple[str, ...]
    input: InputSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    train: Split
    val: Split | None
    test: Split
    files: tuple[str, ...]
    bad: dict[str, str]
    said: tuple[str, ...]


def read_pictures(
    path: str | Path,
    recipe: Recipe,
    pinned: Mapping[str, str] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Read a folder or a CSV of pictures; what they are not split into is held out of the training split, stratified,
    by the recipe's seed, with groups and identical pictures on one side.

    Args:
        pinned: path -> split, of a run that is taken up: these files, no others, and so split.
        limit: keep about so many training pictures and a sixth of it of the test ones.
        progress: called with the number of pictures decoded and of all, where they are not in the cache.

    Raises:
        UserError: no pictures, too many that cannot be used, classes that differ between splits, too few of a class.
    """
    config, listing = recipe.data, list_pictures(path, recipe.data)
    entries = listing.entries if pinned is None else _pinned(listing, pinned, path)
    classes_of(entries, path)  # before anything is decoded
    spec = choose_input(listing.root, entries, config)
    names = [entry.path for entry in entries]
    decoded = decode(listing.root, names, spec, progress and (lambda done: progress(done, len(names))))
    bad = listing.bad | {names[place]: problem for place, problem in decoded.problems.items()}
    if pinned is None:
        _require_few(bad, len(names) + len(listing.bad), config.max_bad, path)
    rows = [place for place in range(len(entries)) if place not in decoded.problems]
    for label, count in Counter(entry.label for entry in entries).items():
        if not any(entries[place].label == label for place in rows):
            reason = next(problem for place, problem in decoded.problems.items() if entries[place].label == label)
            raise UserError(
                f"none of the {count} pictures of the class {label} can be used (the first: {reason}): mend them, or "
                "take the class away"
            )
    entries = [entries[place] for place in rows]
    classes = classes_of(entries, path)
    train, val, test, made = _split(entries, classes, decoded, rows, recipe, pinned is not None, limit)
    mean, std = mean_and_std(train)
    return Pictures(
        root=listing.root,
        classes=classes,
        input=spec,
        mean=mean,
        std=std,
        sha256=_content_hash(entries, decoded.digests[rows], torch.cat([s.index for s in (train, val, test) if s])),
        train=train,
        val=val,
        test=test,
        files=tuple(entry.path for entry in entries),
        bad=bad,
        said=(_sizes(spec, decoded, config), *made, *_left_out(listing, bad, decoded)),
    )


def choose_input(root: Path, entries: Sequence[Entry], config: DataConfig) -> InputSpec:
    """The InputSpec that the recipe asks for; what it leaves open is chosen from the headers of a few hundred pictures:
    their own size where all have the same and it is small, else a square of SIDE pixels or their median shorter side,
    whichever is less; gray where all are gray."""
    size, channels = tuple(config.size), config.channels
    if not size or not channels:
        step = max(len(entries) // LOOKED_AT, 1)
        seen = []
        for entry in entries[::step]:
            try:
                seen.append(facts(root / entry.path))
            except UserError:  # decoding will say what is wrong with it
                continue
        sizes = {fact.size for fact in seen}
        same = sizes.pop() if len(sizes) == 1 else None
        side = min(SIDE, int(median(min(fact.size) for fact in seen))) if seen else SIDE
        size = size or (same if same and max(same) <= SIDE else (side, side))
        channels = channels or (1 if seen and all(fact.mode in _GRAY for fact in seen) else 3)
    return InputSpec((size[0], size[1]), channels, config.resize)


def _pinned(listing: Listing, pinned: Mapping[str, str], path: str | Path) -> list[Entry]:
    found = {entry.path: entry for entry in listing.entries}
    gone = [name for name in pinned if name not in found]
    if gone:
        raise UserError(f"{len(gone):,} of the pictures that the run was trained on are not in {path}: {gone[0]} ...")
    return [replace(found[name], split=split) for name, split in sorted(pinned.items())]


def _require_few(bad: Mapping[str, str], count: int, allowed: float, path: str | Path) -> None:
    if len(bad) > allowed * count:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:3])
        raise UserError(
            f"{len(bad):,} of {count:,} files in {path} cannot be used ({some}{'; ...' if len(bad) > 3 else ''}), and "
            f"{allowed:.0%} are allowed: mend them, or --set data.max_bad={min(len(bad) / count + 0.01, 1):.2f}"
        )


def _split(
    entries: Sequence[Entry],
    classes: tuple[str, ...],
    decoded: Decoded,
    rows: Sequence[int],
    recipe: Recipe,
    complete: bool,
    limit: int | None,
) -> tuple[Split, Split | None, Split, list[str]]:
    """Training, validation and test split, and a sentence on each that had to be made."""
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[entry.label] for entry in entries])
    store = torch.from_numpy(decoded.pixels).permute(0, 3, 1, 2)
    everything = Split(store, labels, torch.arange(len(entries)), torch.tensor(rows))
    own = np.array([entry.split or "train" for entry in entries])
    # Identical pictures on both sides of a split would be learnt by heart and then counted as known
    groups = [entry.group or decoded.digests[row].tobytes() for entry, row in zip(entries, rows, strict=True)]
    train, val, test = (everything.take(torch.from_numpy(np.flatnonzero(own == s))) for s in ("train", "val", "test"))
    made = []

    def held(share: float, what: str) -> tuple[Split, Split]:
        if not share:
            raise UserError(f"there is no {what} split, and data.{what}=0 makes none; set it, for example, to 0.15")
        kept, out = hold_out(train.labels, share, recipe.seed, [groups[i] for i in train.index.tolist()], classes)
        made.append(f"{len(out):,} pictures ({share:.0%} of each class) are held out as the {what} split")
        return train.take(kept), train.take(out)

    if not len(test) and not complete:
        train, test = held(recipe.data.test, "test")
    if limit and not complete:
        train, test = train.first(limit), test.first(limit // 6)
    if not len(val) and not complete and recipe.data.val:
        train, val = held(recipe.data.val, "val")
    return train, val if len(val) else None, test, made


def mean_and_std(train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel in 0..1, from pictures evenly over the training split; a constant channel is not divided by 0."""
    places = torch.linspace(0, len(train) - 1, min(len(train), MEASURED)).long()
    pixels: Tensor = train.at(places).double() / 255
    std = pixels.std((0, 2, 3)).clamp(min=1 / 255)
    return tuple(round(v, 4) for v in pixels.mean((0, 2, 3)).tolist()), tuple(round(v, 4) for v in std.tolist())


def _content_hash(entries: Sequence[Entry], digests: np.ndarray, used: Tensor) -> str:
    digest = hashlib.sha256()
    for place in sorted(used.tolist()):
        digest.update(f"{entries[place].path}\0{entries[place].label}\0".encode(errors="surrogateescape"))
        digest.update(digests[place].tobytes())
    return digest.hexdigest()


def _sizes(spec: InputSpec, decoded: Decoded, config: DataConfig) -> str:
    sizes = [fact.size for fact in decoded.facts if fact]
    low, high = min(sizes, key=min), max(sizes, key=max)
    theirs = f"{low[0]} x {low[1]}" + (f" to {high[0]} x {high[1]}" if low != high else "")
    if {spec.size} == set(sizes):
        how = "taken as they are"
    else:
        ways = {"fit": "padded", "crop": "cropped at the centre", "stretch": "stretched"}
        how = f"brought to {spec.size[0]} x {spec.size[1]}, {ways[spec.resize]} where the proportions differ"
    chosen = "" if config.size else "; --size chooses another"
    return f"pictures of {theirs} pixels (height x width) are {how}, {('gray', 'in colour')[spec.channels > 1]}{chosen}"


def _left_out(listing: Listing, bad: Mapping[str, str], decoded: Decoded) -> list[str]:
    said = []
    if listing.passed_over:
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in listing.passed_over.most_common(6))
        said.append(f"passed over: {kinds}")
    frames = sum(fact is not None and fact.frames for fact in decoded.facts)
    if frames:
        said.append(f"{frames:,} files have several frames: the first is used")
    if bad:
        said.append(f"{len(bad):,} files cannot be used and are left out; bad_files.csv in the run says why")
    return said
