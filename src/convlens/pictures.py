"""Your own pictures: a folder or a CSV -> splits of decoded images, with all that was decided on the way said."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from .cache import decode
from .errors import UserError
from .images import Facts, InputSpec, facts
from .listing import Entry, Listing, classes_of, list_pictures
from .recipe import DataConfig, Recipe
from .splits import Split, hold_out

SIDE = 64  # pixels; larger pictures are brought to this unless a size is asked for: enough to start with, and fast
LOOKED_AT = 500  # headers that are read to choose the size
MEASURED = 1024  # training images that mean and standard deviation are taken from
_GRAY = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


@dataclass(frozen=True)
class Pictures:
    """`files` are the paths in the folder that `Split.index` counts, `bad` those that cannot be used with the reason,
    `said` the sentences that a person should read before training."""

    name: str
    classes: tuple[str, ...]
    input: InputSpec
    flip_ok: bool
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
    read = decode_entries(listing, listing.entries, config, progress)  # all of them: so a run finds what its start left
    if pinned is not None:
        read = read.only(entries)
    else:
        _require_few(read.bad, len(entries) + len(listing.bad), config.max_bad, path)
    _require_all_classes(entries, read)
    classes = classes_of(read.entries, path)
    train, val, test, made = _split(read, classes, recipe, pinned is not None, limit)
    mean, std = mean_and_std(train)
    return Pictures(
        name=name_of(path),
        classes=classes,
        input=read.input,
        flip_ok=read.flip_ok,
        mean=mean,
        std=std,
        sha256=_content_hash(read.entries, read.digests, torch.cat([s.index for s in (train, val, test) if s])),
        train=train,
        val=val,
        test=test,
        files=tuple(entry.path for entry in read.entries),
        bad=read.bad,
        said=(_sizes(read, config), *made, *_left_out(listing, read)),
    )


@dataclass(frozen=True)
class Read:
    """Listed files decoded: the `entries` that can be used, their `digests` (see `Decoded`), `facts` and `rows` in
    `pixels`; `bad` are the others, listed or decoded, with the reason."""

    input: InputSpec
    entries: list[Entry]
    rows: list[int]
    pixels: np.ndarray
    digests: np.ndarray
    facts: list[Facts]
    bad: dict[str, str]

    @property
    def flip_ok(self) -> bool:
        """Gray pictures are often writing or scans, which mirroring makes wrong."""
        return self.input.channels == 3

    def only(self, entries: Sequence[Entry]) -> Read:
        """Those of some of the files, which may be in other splits now."""
        wanted = {entry.path: entry for entry in entries}
        kept = [place for place, entry in enumerate(self.entries) if entry.path in wanted]
        return replace(
            self,
            entries=[wanted[self.entries[place].path] for place in kept],
            rows=[self.rows[place] for place in kept],
            digests=self.digests[kept],
            facts=[self.facts[place] for place in kept],
        )

    def labelled(self, classes: Sequence[str]) -> Split:
        """All that can be used, with labels that count `classes`."""
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number[entry.label] for entry in self.entries], dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to it
            store = torch.from_numpy(self.pixels).permute(0, 3, 1, 2)
        return Split(store, labels, torch.arange(len(labels)), torch.tensor(self.rows, dtype=torch.int64))


def decode_entries(
    listing: Listing,
    entries: Sequence[Entry],
    config: DataConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Read:
    """The pixels of some entries of a listing, from the cache or decoded now, at the size that `choose_input` says."""
    spec = choose_input(listing.root, entries, config)
    names = [entry.path for entry in entries]
    decoded = decode(listing.root, names, spec, progress)
    seen = [(place, fact) for place, fact in enumerate(decoded.facts) if fact]
    rows = [place for place, _ in seen]
    return Read(
        input=spec,
        entries=[entries[place] for place in rows],
        rows=rows,
        pixels=decoded.pixels,
        digests=decoded.digests[rows],
        facts=[fact for _, fact in seen],
        bad=listing.bad | {names[place]: problem for place, problem in decoded.problems.items()},
    )


def name_of(path: str | Path) -> str:
    """What a folder or a CSV is called where a data set has a name. Runs are named by it, and safetensors opens no path
    that is not UTF-8, so what is none becomes `_`."""
    path = Path(path).expanduser().resolve()
    return (path.stem if path.is_file() else path.name).encode(errors="replace").decode().replace("?", "_")


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
        raise UserError(f"{path} lacks {len(gone):,} of the pictures that the run was trained on: {gone[0]} ...")
    return [replace(found[name], split=split) for name, split in sorted(pinned.items())]


def _require_few(bad: Mapping[str, str], count: int, allowed: float, path: str | Path) -> None:
    if len(bad) > allowed * count:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:3])
        raise UserError(
            f"{len(bad):,} of {count:,} files in {path} cannot be used ({some}{'; ...' if len(bad) > 3 else ''}), and "
            f"{allowed:.0%} are allowed: mend them, or --set data.max_bad={min(len(bad) / count + 0.01, 1):.2f}"
        )


def _require_all_classes(entries: Sequence[Entry], read: Read) -> None:
    left = {entry.label for entry in read.entries}
    for entry in entries:
        if entry.label not in left:
            count = sum(other.label == entry.label for other in entries)
            raise UserError(
                f"no picture of the class {entry.label} can be used ({count:,} cannot; the first: "
                f"{read.bad[entry.path]}): mend them, or take the class away"
            )


def _split(
    read: Read, classes: tuple[str, ...], recipe: Recipe, complete: bool, limit: int | None
) -> tuple[Split, Split | None, Split, list[str]]:
    """Training, validation and test split, and a sentence on each that had to be made."""
    everything = read.labelled(classes)
    own = np.array([entry.split or "train" for entry in read.entries])
    # Identical pictures on both sides of a split would be learnt by heart and then counted as known
    groups = [entry.group or seen.tobytes() for entry, seen in zip(read.entries, read.digests, strict=True)]
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


def mean_and_std(train: Split, most: int = MEASURED) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel in 0..1, from at most so many pictures evenly over the training split; a constant channel is not
    divided by 0."""
    some = train.take(torch.linspace(0, len(train) - 1, min(len(train), most)).long())
    counts = torch.zeros(some.store.shape[1], 256, dtype=torch.float64)  # of each value in each channel
    for places in some.blocks():
        counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in some.at(places).unbind(1)])
    values, number = torch.arange(256).double() / 255, counts[0].sum()
    mean = counts @ values / number
    std = (counts * (values - mean[:, None]) ** 2).sum(1).div(number - 1).sqrt().clamp(min=1 / 255)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _content_hash(entries: Sequence[Entry], digests: np.ndarray, used: Tensor) -> str:
    digest = hashlib.sha256()
    for place in sorted(used.tolist()):
        digest.update(f"{entries[place].path}\0{entries[place].label}\0".encode(errors="surrogateescape"))
        digest.update(digests[place].tobytes())
    return digest.hexdigest()


def _sizes(read: Read, config: DataConfig) -> str:
    spec, sizes = read.input, [fact.size for fact in read.facts]
    low, high = min(sizes, key=min), max(sizes, key=max)
    theirs = f"{low[0]} x {low[1]}" + (f" to {high[0]} x {high[1]}" if low != high else "")
    if {spec.size} == set(sizes):
        how = "taken as they are"
    else:
        ways = {"fit": "padded", "crop": "cropped at the centre", "stretch": "stretched"}
        how = f"brought to {spec.size[0]} x {spec.size[1]}, {ways[spec.resize]} where the proportions differ"
    chosen = "" if config.size else "; --size chooses another"
    return f"pictures of {theirs} pixels (height x width) are {how}, {('gray', 'in colour')[spec.channels > 1]}{chosen}"


def _left_out(listing: Listing, read: Read) -> list[str]:
    said = []
    if listing.passed_over:
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in listing.passed_over.most_common(6))
        said.append(f"passed over: {kinds}")
    frames = sum(fact.frames for fact in read.facts)
    if frames:
        said.append(f"of files with several frames the first is used ({frames:,})")
    if read.bad:
        said.append(f"files that cannot be used are left out ({len(read.bad):,}); bad_files.csv in the run says why")
    return said
