"""Everything that train() sees: splits of uint8 images in memory, and the batches of an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .augment import augment
from .datasets import DatasetSpec, get_spec
from .device import mix_seed
from .errors import UserError
from .images import InputSpec
from .readers import read
from .recipe import AugmentConfig, Recipe


@dataclass(frozen=True)
class Split:
    """`images` uint8 (N, C, H, W), in memory pixel by pixel (channels last, as convolutions take them fastest);
    `labels` int64 (N,), `index` int64 (N,): each image's place in its file."""

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        return Split(self.images[indices], self.labels[indices], self.index[indices])

    def first(self, count: int) -> Split:
        """About `count` images, or all where there are fewer: the first of every class, each in proportion."""
        share = min(count / len(self), 1.0)
        members = [(self.labels == label).nonzero().flatten() for label in self.labels.unique()]
        return self.take(torch.cat([m[: max(round(share * len(m)), 1)] for m in members]).sort().values)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device), self.index.to(device))


@dataclass(frozen=True)
class Data:
    """A data set ready to train on. `val` is None where the recipe holds nothing out."""

    name: str
    classes: tuple[str, ...]
    input: InputSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip_ok: bool
    sha256: str
    train: Split
    val: Split | None
    test: Split
    data_dir: str | None = None  # where load() was told to look, and how much to keep: a run needs it to load it again
    limit: int | None = None

    def to(self, device: torch.device) -> Data:
        return replace(
            self, train=self.train.to(device), val=self.val and self.val.to(device), test=self.test.to(device)
        )


def load(
    name: str | DatasetSpec, recipe: Recipe | None = None, data_dir: str | Path | None = None, limit: int | None = None
) -> Data:
    """Load a named data set and hold out `recipe.data.val` of its training images, stratified, by `recipe.seed`.

    `limit` keeps about that many training images and a sixth of it test images, the first of every class alike, for a
    quick look.

    Raises:
        UserError: an unknown name, damaged files, or a download that failed.
    """
    spec = get_spec(name) if isinstance(name, str) else name
    recipe = recipe or Recipe()
    train_arrays, test_arrays = read(spec, data_dir)
    train, test = (_split(images, labels) for images, labels in (train_arrays, test_arrays))
    if limit:
        train, test = train.first(limit), test.first(limit // 6)
    sha256 = _content_hash(train, test)
    train, test = (replace(s, images=s.images.contiguous(memory_format=torch.channels_last)) for s in (train, test))
    kept, held = hold_out(train.labels, recipe.data.val, recipe.seed)
    return Data(
        name=spec.name,
        classes=spec.classes,
        input=InputSpec(spec.size, spec.channels),
        mean=spec.mean,
        std=spec.std,
        flip_ok=spec.flip_ok,
        sha256=sha256,
        train=train if not len(held) else train.take(kept),
        val=train.take(held) if len(held) else None,
        test=test,
        data_dir=str(Path(data_dir).expanduser().absolute()) if data_dir else None,
        limit=limit,
    )


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out), each sorted: of every class `share` of its images, rounded, at least one.

    Raises:
        UserError: a class would have no image left to train on.
    """
    if share == 0:
        return torch.arange(len(labels)), torch.empty(0, dtype=torch.int64)
    generator = np.random.default_rng(mix_seed(seed, 0x5011))  # its own stream: not the one that orders epoch 0
    held = []
    for label in labels.unique().tolist():
        members = generator.permutation(np.flatnonzero(labels.numpy() == label))
        count = max(round(share * len(members)), 1)
        if count >= len(members):
            raise UserError(
                f"class number {label} has {len(members)} training images, too few to hold {share:.0%} out: add images "
                "or set data.val=0"
            )
        held.append(members[:count])
    taken = np.zeros(len(labels), dtype=bool)
    taken[np.concatenate(held)] = True
    return torch.from_numpy(np.flatnonzero(~taken)), torch.from_numpy(np.flatnonzero(taken))


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """The last batch may be smaller; no image is dropped."""
    return -(-len(split) // batch_size)


def draw(split: Split, seed: int, epoch: int, balanced: bool = False) -> Tensor:
    """The images (N,) of an epoch in their order: each of the split's N once, or, `balanced`, N drawn with replacement
    such that all classes are equally likely, and in a class all images."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    if not balanced:
        return torch.randperm(len(split), generator=generator)
    labels = split.labels.cpu()
    return torch.multinomial(1 / labels.bincount().double()[labels], len(split), True, generator=generator)


def batches(
    split: Split,
    batch_size: int,
    augmentation: AugmentConfig,
    seed: int,
    epoch: int,
    first_step: int = 0,
    balanced: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch, from `first_step` on: (uint8 (B, C, H, W), int64 (B,)) on the split's device.

    Order and augmentation come from (seed, epoch, step) alone, so an epoch can be taken up anywhere. See `draw` for
    `balanced`.
    """
    device = split.images.device
    order = draw(split, seed, epoch, balanced).to(device)
    changes = augmentation != AugmentConfig()
    mirrored = None
    if augmentation.flip and augmentation.alternate:
        # Every image is seen from both sides in any two epochs, which flips drawn anew each time do not promise
        # (Jordan, arXiv:2404.00498)
        coins = torch.rand(len(split), generator=torch.Generator().manual_seed(mix_seed(seed, 1 << 33))) < 0.5
        mirrored = (coins ^ (epoch % 2 == 0)).to(device)
    for step in range(first_step, steps_per_epoch(split, batch_size)):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        images, labels = split.images[chosen], split.labels[chosen]
        if changes:
            # step + 1: numpy pads seeds with zeros, so step 0 would draw the numbers that made the order
            generator = torch.Generator(device).manual_seed(mix_seed(seed, epoch, step + 1))
            images = augment(images, augmentation, generator, None if mirrored is None else mirrored[chosen])
        yield images, labels


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    pixels = torch.from_numpy(images if images.flags.writeable else images.copy())
    return Split(pixels, torch.from_numpy(labels), torch.arange(len(labels)))


def _content_hash(*splits: Split) -> str:
    """sha256 of all pixels and labels: the same whichever file layout they came from."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()
