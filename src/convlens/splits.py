"""A split of a data set: labelled images in a store that several splits share; and how one is held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .device import mix_seed
from .errors import UserError


@dataclass(frozen=True)
class Split:
    """Images with labels. `store` uint8 (M, C, H, W) is in memory, or on the disk and mapped into it read-only (writing
    to it ends the process), pixel by pixel (channels last, as convolutions take them fastest); `labels` int64 (N,);
    `index` int64 (N,): each image's place in its file or listing; `rows` int64 (N,): its place in the store, which may
    hold other splits' images too (None: all of the store, in order)."""

    store: Tensor
    labels: Tensor
    index: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images, uint8 (N, C, H, W): a copy where the store holds others too."""
        return self.store if self.rows is None else self.store[self.rows]

    def at(self, places: Tensor | slice) -> Tensor:
        """The images at some places of the split, int64 (B,) or a slice -> uint8 (B, C, H, W)."""
        return self.store[places if self.rows is None else self.rows[places]]

    def take(self, places: Tensor) -> Split:
        """Part of the split, by places int64 (B,) or a mask bool (N,); no pixel is copied."""
        rows = torch.arange(len(self), device=places.device) if self.rows is None else self.rows
        return Split(self.store, self.labels[places], self.index[places], rows[places])

    def blocks(self, numbers: int = 1 << 23) -> Iterator[Tensor]:
        """All places in order, as many at a time as have about `numbers` pixels and channels together."""
        yield from torch.arange(len(self)).split(max(numbers // self.store[0].numel(), 1))

    def first(self, count: int) -> Split:
        """About `count` images, or all where there are fewer: the first of every class, each in proportion."""
        share = min(count / len(self), 1.0)
        members = [(self.labels == label).nonzero().flatten() for label in self.labels.unique()]
        return self.take(torch.cat([m[: max(round(share * len(m)), 1)] for m in members]).sort().values)

    def to(self, device: torch.device) -> Split:
        if device == self.store.device:
            return self
        shape = len(self), *self.store.shape[1:]
        images = torch.empty(shape, dtype=torch.uint8, device=device, memory_format=torch.channels_last)
        for places in self.blocks():  # the whole may not fit into this machine's memory
            images[places.to(device)] = self.at(places).to(device)
        return Split(images, self.labels.to(device), self.index.to(device))


def hold_out(
    labels: Tensor,
    share: float,
    seed: int,
    groups: Sequence[object] | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out), each sorted: of every class `share` of its images, rounded, at least one. Images of one
    of the `groups` (N) are all kept or all held out, so the shares are met as nearly as whole groups allow.

    `classes` names them in the error.

    Raises:
        UserError: a class would have no image left on one of the sides.
    """
    if share == 0:
        return torch.arange(len(labels)), torch.empty(0, dtype=torch.int64)
    generator = np.random.default_rng(mix_seed(seed, 0x5011))  # its own stream: not the one that orders epoch 0
    if groups is not None:
        return _hold_groups_out(labels.numpy(), share, generator, groups, classes)
    held = []
    for label in labels.unique().tolist():
        members = generator.permutation(np.flatnonzero(labels.numpy() == label))
        count = max(round(share * len(members)), 1)
        if count >= len(members):
            raise UserError(
                f"{_named(label, classes)} has {len(members)} training images, too few to hold {share:.0%} out: add "
                "images or set data.val=0"
            )
        held.append(members[:count])
    taken = np.zeros(len(labels), dtype=bool)
    taken[np.concatenate(held)] = True
    return torch.from_numpy(np.flatnonzero(~taken)), torch.from_numpy(np.flatnonzero(taken))


def _hold_groups_out(
    labels: np.ndarray,
    share: float,
    generator: np.random.Generator,
    groups: Sequence[object],
    classes: Sequence[str] | None,
) -> tuple[Tensor, Tensor]:
    """Whole groups in random order, each held out where that brings the classes' counts nearer to what is asked (in
    least squares). Not the largest first: then they would all be on one side."""
    of_group: dict[object, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        of_group[group].append(place)
    everything = np.bincount(labels)
    asked = np.maximum(np.round(share * everything), 1)
    held, counts = np.zeros(len(labels), dtype=bool), np.zeros(len(everything))
    members = list(of_group.values())
    for places in (members[i] for i in generator.permutation(len(members))):
        # most groups are one image, for which np.unique takes longer than all else
        present, more = np.unique(labels[places], return_counts=True) if len(places) > 1 else (labels[places], 1)
        lacking = asked[present] - counts[present]
        if (more * (more - 2 * lacking)).sum() < 0:
            held[places] = True
            counts[present] += more
    for label in np.flatnonzero(everything):
        if not 0 < counts[label] < everything[label]:
            side = "all" if counts[label] else "none"
            raise UserError(
                f"{_named(int(label), classes)} cannot be split: it has {everything[label]} images, in groups of which "
                f"{side} would be held out; add images or groups, or name the splits yourself"
            )
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def _named(label: int, classes: Sequence[str] | None) -> str:
    return f"the class {classes[label]}" if classes else f"class number {label}"
