"""Pictures that are there twice: the very pixels, or the same picture compressed anew, resized, cut or made brighter.

The perceptual hash is ours. imagehash, the library that everybody uses for it, is well kept but brings scipy and
PyWavelets, takes one PIL picture at a time, and leaves the search to its caller; here all pictures are decoded already,
and a hash is two small matrix products. It is imagehash's `phash` bit for bit, given the same 32 x 32 gray pixels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .album import Album
from .findings import Finding, Item, number
from .splits import Split

SIDE = 32  # pixels of the thumbnails whose cosine transform is taken, as in imagehash
HASHED = 8  # of its frequencies in each direction are hashed: 64 bits
COMPARED = 12  # are compared: enough to tell two pictures apart, and blind to what JPEG and resizing change
# Found on planted copies in flowers and CIFAR-10 (docs/check.md): the distance lets nearly all copies through, the
# likeness then turns away nearly all pairs that are none.
DISTANCE = 10  # bits of 64 in which two copies may differ
LIKENESS = (0.92, 0.96, 0.98, 0.99, 0.995)  # correlation that two copies have at least: the first that is no crowd
CROWD = 20  # pictures: a longer chain of likenesses is a kind of picture, such as the digit 1, and not one picture
CROWDED = 0.01  # of the pictures may be in crowds; with more, a higher correlation is asked for
BLOCK = 1024  # pictures: the products of two blocks of hashes stay in a processor's cache
_GRAY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow's "L"


@dataclass(frozen=True)
class Copies:
    """Places of pictures that are the same one, sorted; `exact` where all of them have the same pixels."""

    places: tuple[int, ...]
    exact: bool


def find_copies(pictures: Split, digests: np.ndarray, mirrored: bool = False) -> list[Copies]:
    """Groups of pictures that are the same one, by the digests of their pixels (uint8 (N, 16)) or nearly, each picture
    in one group at most. `mirrored` also finds a picture and its mirror image."""
    identical = defaultdict(list)
    for place, digest in enumerate(digests):
        identical[digest.tobytes()].append(place)
    first = torch.tensor([places[0] for places in identical.values()])  # one of each is enough
    spectrum = spectra(pictures.take(first))
    found = [alike(spectrum, spectrum)]
    if mirrored:
        found.append(alike(spectrum, mirror(spectrum)))
    pairs, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    pairs = uncrowded(pairs, values, len(first))
    same = [(places[0], place) for places in identical.values() for place in places[1:]]
    near = [(i, j) for i, j in first[pairs].tolist()]
    return [
        Copies(places, len({digests[place].tobytes() for place in places}) == 1) for places in joined([*same, *near])
    ]


def spectra(pictures: Split) -> Tensor:
    """The lowest frequencies of every picture's thumbnail, float32 (N, C, COMPARED, COMPARED): its orthonormal cosine
    transform (DCT-II) but for a factor."""
    at, frequency = torch.arange(SIDE), torch.arange(COMPARED)[:, None]
    waves = torch.cos(math.pi * frequency * (2 * at + 1) / (2 * SIDE))
    waves[0] *= math.sqrt(0.5)
    found = []
    for places in pictures.blocks():
        small = pictures.at(places).float()
        if small.shape[2:] != (SIDE, SIDE):
            small = F.interpolate(small, (SIDE, SIDE), mode="bilinear", antialias=True)
        found.append(waves @ small @ waves.T)
    return torch.cat(found)


def mirror(spectrum: Tensor) -> Tensor:
    """The spectra of the mirror images: waves of odd frequency change their sign."""
    return spectrum * (1 - 2 * (torch.arange(COMPARED) % 2))


def perceptual_hashes(spectrum: Tensor) -> Tensor:
    """pHash, bool (N, 64), from the `spectra` of pictures: a bit tells whether one of the 8 x 8 lowest frequencies of
    the gray thumbnail is above their median (Zauner, Implementation and Benchmarking of Perceptual Image Hash
    Functions, 2010; as imagehash does it, the mean brightness is one of them, and the transform is not normalised)."""
    gray = spectrum[:, 0] if spectrum.shape[1] == 1 else torch.einsum("nchw,c->nhw", spectrum, _GRAY)
    low = gray[:, :HASHED, :HASHED].clone()
    low[:, 0] *= math.sqrt(2)
    low[:, :, 0] *= math.sqrt(2)
    low = low.flatten(1)
    middle = low.sort(dim=1).values[:, HASHED**2 // 2 - 1 : HASHED**2 // 2 + 1].mean(1, keepdim=True)
    return low > middle


def close_pairs(first: Tensor, second: Tensor, distance: int = DISTANCE) -> Iterator[Tensor]:
    """Pairs i < j where first[i] and second[j], bool (N, B), differ in at most `distance` bits: int64 (P, 2), a block
    of the table at a time. All N^2 / 2 distances are computed, as products of +-1: 60,000 pictures take seconds, and no
    index finds pairs at such a distance with less."""
    bits = first.shape[1]
    left, right = (hashes.float().mul_(2).sub_(1) for hashes in (first, second))
    for i in range(0, len(left), BLOCK):
        for j in range(i, len(right), BLOCK):
            close = left[i : i + BLOCK] @ right[j : j + BLOCK].T >= bits - 2 * distance
            if i == j:
                close.triu_(1)
            hits = np.flatnonzero(close.numpy())  # 30 times as fast as nonzero() where nearly all are False
            if len(hits):
                yield torch.from_numpy(np.stack(np.divmod(hits, close.shape[1]), 1)) + torch.tensor([i, j])


def shapes(spectrum: Tensor) -> Tensor:
    """What `likeness` compares, float32 (N, D) of length 1: the spectra without brightness and contrast, but with the
    differences between the channels."""
    shape = spectrum.clone()
    shape[:, :, 0, 0] -= shape[:, :, 0, 0].mean(1, keepdim=True)
    return F.normalize(shape.flatten(1))


def likeness(first: Tensor, second: Tensor, pairs: Tensor) -> Tensor:
    """Correlation (P,) in -1..1 of the pictures of each pair i, j, by first[i] and second[j] of their `shapes`: that of
    all pixels and channels of the thumbnails, smoothed (Parseval)."""
    return (first[pairs[:, 0]] * second[pairs[:, 1]]).sum(1)


def alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs i < j, int64 (P, 2), of pictures that may be the same one, and their likeness (P,): by first[i] and
    second[j] of their `spectra`."""
    left, right = shapes(first), shapes(second)
    pairs, values = [torch.zeros(0, 2, dtype=torch.int64)], [torch.zeros(0)]
    for block in close_pairs(perceptual_hashes(first), perceptual_hashes(second)):
        for some in block.split(1 << 16):
            value = likeness(left, right, some)
            pairs.append(some[value >= LIKENESS[0]])
            values.append(value[value >= LIKENESS[0]])
    return torch.cat(pairs), torch.cat(values)


def uncrowded(pairs: Tensor, values: Tensor, count: int) -> Tensor:
    """Those of the `pairs` whose likeness is the lowest of LIKENESS at which few of the `count` pictures are crowded.
    Photographs are as unlike as can be, and any likeness tells; pictures of digits are copies of each other but for
    details."""
    kept = pairs[values >= LIKENESS[-1]]
    for bar in reversed(LIKENESS[:-1]):
        more = pairs[values >= bar]
        if sum(len(places) for places in joined(more.tolist()) if len(places) > CROWD) > CROWDED * count:
            break
        kept = more
    return kept


def joined(pairs: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """The sets of places that chains of pairs connect, each sorted, in the order of their first places."""
    parent: dict[int, int] = {}

    def root(place: int) -> int:
        while parent.setdefault(place, place) != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    sets = defaultdict(list)
    for place in sorted(parent):
        sets[root(place)].append(place)
    return sorted(map(tuple, sets.values()))


# In words -------------------------------------------------------------------------------------------------------


def of_copies(album: Album, copies: Sequence[Copies]) -> Iterator[Finding]:
    """The same picture twice: across splits, under two labels, or only so."""
    items: dict[str, list[Item]] = {kind: [] for kind in _COPIES}
    for group in copies:
        labels = sorted({album.label(place) for place in group.places})
        splits = sorted({album.splits[place] for place in group.places})
        files = tuple(album.names[place] for place in group.places)
        how = "identical" if group.exact else "nearly the same"
        if len(splits) > 1:
            items["copies-across-splits"].append(Item(files, f"{how}, in {' and '.join(splits)}"))
        if len(labels) > 1:
            items["two-labels"].append(Item(files, f"{how}, labelled {' and '.join(labels)}"))
        if len(splits) == len(labels) == 1:
            items["exact-copies" if group.exact else "near-copies"].append(Item(files, how))
    for kind, (severity, what, todo) in _COPIES.items():
        if items[kind]:
            count = len(items[kind])
            yield Finding(
                kind,
                "error" if severity == "error" else "warning",
                count,
                f"{number(count, 'picture')} {what}",
                todo,
                tuple(items[kind]),
            )


_COPIES = {
    "copies-across-splits": (
        "error",
        "with copies in more than one split",
        "Keep each in one split: else the test asks for what was seen in training, and the accuracy is too high.",
    ),
    "two-labels": (
        "error",
        "with copies under two labels",
        "Decide which label is right, and delete the other copies.",
    ),
    "exact-copies": (
        "warning",
        "with identical copies",
        "Delete all but one of each; splits that ConvLens makes keep identical pictures on one side.",
    ),
    "near-copies": (
        "warning",
        "with copies that are nearly the same",
        "Delete all but one of each, or give them one group in a CSV, such that no split tears them apart.",
    ),
}
