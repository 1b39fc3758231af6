"""check(): what is wrong with a data set, before a training spends time on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .album import Album, open_album
from .device import keep_memory
from .duplicates import Copies, find_copies, of_copies
from .findings import Finding, counts, of_classes, of_files
from .mislabels import Doubt, doubtful, of_labels, out_of_fold
from .quality import blank, measure, of_looks
from .recipe import DataConfig

FEWEST = 100  # different pictures: from fewer a network learns too little to doubt a label
_ORDER = ("error", "warning", "note")


@dataclass(frozen=True)
class Report:
    """What `check` found, the worst first. `labels` tells whether the labels were looked at."""

    album: Album
    findings: tuple[Finding, ...]
    labels: bool
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether there is no error and no warning."""
        return all(finding.severity == "note" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it; sizes are [height, width]."""
        album = self.album
        sizes = sorted((fact.size for fact in album.facts if fact), key=lambda size: size[0] * size[1])
        return {
            "data": album.name,
            "pictures": len(album),
            "bad": len(album.bad),
            "counts": counts(album),
            "input": {"size": list(album.input.size), "channels": album.input.channels},
            "sizes": {
                name: list(sizes[at]) for name, at in (("smallest", 0), ("median", len(sizes) // 2), ("largest", -1))
            }
            if sizes
            else None,
            "modes": dict(Counter(fact.mode for fact in album.facts if fact).most_common()),
            "formats": dict(Counter(fact.format for fact in album.facts if fact).most_common()),
            "labels_checked": self.labels,
            "seconds": round(self.seconds, 3),
            "severities": {name: sum(finding.severity == name for finding in self.findings) for name in _ORDER},
            "findings": [asdict(finding) for finding in self.findings],
        }


def check(
    data: str | Path,
    config: DataConfig | None = None,
    data_dir: str | Path | None = None,
    labels: bool = True,
    mirrored: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Look for faults in a folder, a CSV or a named data set. Nothing of the user's is changed.

    Args:
        config: how pictures of your own are read; see `open_album` for it and for `progress`.
        labels: train small networks to find wrong labels, which takes longer than all the rest.
        mirrored: take a picture and its mirror image for copies.
        tell: gets sentences on how it goes.

    Raises:
        UserError: there is no such thing, or not one file that could be a picture of a class.
    """
    started = time.perf_counter()
    album = open_album(data, config, data_dir, progress)
    keep_memory()  # not before: what decodes inherits it, and is to give back the memory of its largest picture
    found = [*of_files(album), *of_classes(album)]
    looked = False
    if len(album):
        measures = measure(album.pictures)
        found += of_looks(album, measures)
        seen = np.flatnonzero(~blank(measures))  # one blank picture is like another, and has no class to be seen
        if len(seen):
            copies = _copies(album, seen, mirrored)
            found += of_copies(album, copies)
            looked = labels and _can_learn(album, seen, copies)
            found += of_labels(album, _doubts(album, seen, copies, tell)) if looked else ()
    found.sort(key=lambda finding: _ORDER.index(finding.severity))
    return Report(album, tuple(found), looked, time.perf_counter() - started)


def _copies(album: Album, seen: np.ndarray, mirrored: bool) -> list[Copies]:
    copies = find_copies(album.pictures.take(torch.from_numpy(seen)), album.digests[seen], mirrored)
    return [Copies(tuple(seen[list(group.places)].tolist()), group.exact) for group in copies]


def _can_learn(album: Album, seen: np.ndarray, copies: list[Copies]) -> bool:
    different = len(seen) - sum(len(group.places) - 1 for group in copies)
    return different >= FEWEST and len(album.pictures.labels[torch.from_numpy(seen)].unique()) > 1


def _doubts(album: Album, seen: np.ndarray, copies: list[Copies], tell: Callable[[str], None] | None) -> list[Doubt]:
    place_of = {place: i for i, place in enumerate(seen.tolist())}
    together = [[place_of[place] for place in group.places] for group in copies]
    pictures = album.pictures.take(torch.from_numpy(seen))
    probabilities = out_of_fold(pictures, album.classes, album.flip_ok, together, tell)
    doubts = doubtful(probabilities, pictures.labels)
    return [Doubt(int(seen[d.place]), d.seems, d.probability, d.own) for d in doubts]
