"""Pictures that stand out: blank, very dark, very blurred, or of another size or shape than the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .album import Album
from .findings import Finding, number, single
from .splits import Split

# The first three were set on planted faults in flowers and CIFAR-10 (docs/check.md)
BLANK = 4.0  # of 255: the standard deviation that a blank picture has at most, with a sensor's or a JPEG's noise
DARK = 50.0  # of 255: 99 % of a very dark picture's pixels are below
BLUR_FACTOR = 8.0  # a blurred picture has at most an eighth of the usual sharpness, however alike the others are
OUTLIER = 3.5  # robust z-score of an outlier (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)
SIZE_FACTOR = 4.0  # an odd size has four times the usual number of pixels, or a quarter, at least
SHAPE_FACTOR = 2.0  # an odd shape is twice as wide, or half as wide, as is usual for its height, at least
ODD_SHARE = 0.05  # a mode that fewer of the files have is an odd one out
_LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]


@dataclass(frozen=True)
class Measures:
    """Of each picture (N,), float64, at the size that it is trained at: `spread` the largest standard deviation of a
    channel and `bright` the 99th percentile of the pixels' mean over the channels, both in 0..255; `sharpness` the
    variance of its Laplacian over its own variance, so that contrast does not matter."""

    spread: np.ndarray
    bright: np.ndarray
    sharpness: np.ndarray


def measure(pictures: Split) -> Measures:
    """All measures of all pictures."""
    spread, bright, sharpness = [], [], []
    for places in pictures.blocks():
        images = pictures.at(places).float()
        gray = images.mean(1, keepdim=True)
        spread.append(images.std((2, 3), correction=0).amax(1))
        bright.append(gray.flatten(1).kthvalue(math.ceil(0.99 * gray[0].numel()), dim=1).values)
        edges = F.conv2d(gray, _LAPLACIAN)
        sharpness.append(edges.var((1, 2, 3)) / gray.var((1, 2, 3)).clamp(min=1e-6))
    return Measures(*(torch.cat(values).double().numpy() for values in (spread, bright, sharpness)))


def blank(found: Measures) -> np.ndarray:
    """bool (N,): pictures of one colour."""
    return found.spread <= BLANK


def dark(found: Measures) -> np.ndarray:
    """bool (N,): pictures that are nearly black, but not blank."""
    return (found.bright < DARK) & ~blank(found)


def blurred(found: Measures) -> np.ndarray:
    """bool (N,): pictures far less sharp than the others of this data set, neither blank nor dark."""
    plain = ~blank(found) & ~dark(found)
    odd = np.zeros(len(plain), bool)
    odd[plain] = outliers(found.sharpness[plain], BLUR_FACTOR) < 0
    return odd


def odd_sizes(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool (N,): pictures whose (height, width) has far more or fewer pixels than the others, or another shape."""
    height, width = np.array(sizes, dtype=np.float64).reshape(-1, 2).T
    return (outliers(height * width, SIZE_FACTOR) != 0) | (outliers(width / height, SHAPE_FACTOR) != 0)


def outliers(values: np.ndarray, factor: float) -> np.ndarray:
    """-1 where one of the positive `values` (N,) is far below the others, 1 where far above, else 0: by a robust
    z-score of its logarithm beyond OUTLIER, and by `factor` at least, for where the others are all alike any difference
    has a large z-score."""
    if not len(values):
        return np.zeros(0)
    logs = np.log(np.maximum(values, 1e-12))
    away = logs - np.median(logs)
    deviation = 1.4826 * np.median(np.abs(away))  # the standard deviation, of a normal distribution
    return np.sign(away) * (np.abs(away) > max(OUTLIER * deviation, np.log(factor) - 1e-9))


# In words -------------------------------------------------------------------------------------------------------


def of_looks(album: Album, measures: Measures) -> Iterator[Finding]:
    """Blank, very dark and very blurred pictures; odd sizes and modes."""
    for kind, severity, mask, values, noted, what, todo in (
        (
            "blank",
            "warning",
            blank(measures),
            measures.spread,
            "standard deviation {:.1f} of 255",
            "of one colour",
            "Delete them: there is nothing to see, whatever the label says.",
        ),
        (
            "dark",
            "warning",
            dark(measures),
            measures.bright,
            "99 % of it below {:.0f} of 255",
            "nearly black",
            "Look at them: brighten or delete those in which the class cannot be seen.",
        ),
        (
            "blurred",
            "note",
            blurred(measures),
            measures.sharpness / max(float(np.median(measures.sharpness)), 1e-12),
            "{:.1%} of the usual sharpness",
            "far less sharp than the others",
            "Look at them: delete those in which the class cannot be seen.",
        ),
    ):
        places = np.flatnonzero(mask)
        places = places[values[places].argsort(kind="stable")]  # the worst first
        if len(places):
            yield Finding(
                kind,
                severity,  # type: ignore[arg-type] # one of the three, in a tuple of strings
                len(places),
                f"{number(len(places), 'picture')} {what}",
                todo,
                single(album, places, (noted.format(value) for value in values[places])),
            )
    yield from _of_facts(album)


def _of_facts(album: Album) -> Iterator[Finding]:
    known = [(place, fact) for place, fact in enumerate(album.facts) if fact]
    odd = [known[i] for i in np.flatnonzero(odd_sizes([fact.size for _, fact in known]))]
    if odd:
        yield Finding(
            "odd-sizes",
            "note",
            len(odd),
            f"{number(len(odd), 'picture')} of a size or shape unlike the others",
            "Look at them: icons, banners and screenshots get into collections; what is fine may stay.",
            single(album, [place for place, _ in odd], (f"{f.size[0]} x {f.size[1]}" for _, f in odd)),
        )
    modes = Counter(fact.mode for _, fact in known)
    rare = [(place, fact.mode) for place, fact in known if modes[fact.mode] < ODD_SHARE * len(known)]
    if rare:
        names = ", ".join(sorted({mode for _, mode in rare}))
        yield Finding(
            "odd-modes",
            "note",
            len(rare),
            f"{number(len(rare), 'picture')} stored unlike the others ({names})",
            "All are read alike; but where one class only is gray or transparent, that is what would be learnt.",
            single(album, [place for place, _ in rare], (mode for _, mode in rare)),
        )
