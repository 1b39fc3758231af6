"""Everything that train() sees: splits of uint8 images in memory, and the batches of an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .augment import augment, mix
from .datasets import DATASETS, DatasetSpec, get_spec
from .device import mix_seed
from .errors import UserError
from .images import InputSpec
from .pictures import read_pictures
from .readers import read
from .recipe import AugmentConfig, DataConfig, Recipe
from .splits import Split, hold_out

# What a recipe's data says of pictures of your own alone; their `test` and `max_bad` do no harm elsewhere
OF_YOUR_OWN = ("size", "channels", "resize", "path_column", "label_column", "split_column", "group_column")


@dataclass(frozen=True)
class Data:
    """A data set ready to train on. `val` is None where the recipe holds nothing out.

    Of pictures of your own `folder` says where they lie, `files` their paths in it by `Split.index`, `bad` those that
    cannot be used with the reason, and `said` what a person should know of how they were read.
    """

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
    folder: str | None = None
    files: tuple[str, ...] = ()
    bad: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Data:
        return replace(
            self, train=self.train.to(device), val=self.val and self.val.to(device), test=self.test.to(device)
        )


def load(
    name: str | Path | DatasetSpec,
    recipe: Recipe | None = None,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    pinned: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """Load a named data set, or a folder or CSV of your own pictures, and hold out `recipe.data.val` of its training
    images, stratified, by `recipe.seed`.

    `limit` keeps about that many training images and a sixth of it test images, the first of every class alike, for a
    quick look. `pinned` and `progress` are of your own pictures, see `read_pictures`.

    Raises:
        UserError: an unknown name, damaged files, or a download that failed.
    """
    recipe = recipe or Recipe()
    if is_path(name):
        return _load_own(Path(str(name)).expanduser(), recipe, limit, pinned, progress)
    spec = name if isinstance(name, DatasetSpec) else get_spec(str(name))
    config, plain = recipe.data, DataConfig()
    if any(getattr(config, key) != getattr(plain, key) for key in OF_YOUR_OWN):
        raise UserError(
            f"size, channels, resize and columns are for pictures of your own; those of {spec.name} are as they are"
        )
    train_arrays, test_arrays = read(spec, data_dir)
    train, test = (_split(images, labels) for images, labels in (train_arrays, test_arrays))
    if limit:
        train, test = train.first(limit), test.first(limit // 6)
    sha256 = _content_hash(train, test)
    train, test = (replace(s, store=s.store.contiguous(memory_format=torch.channels_last)) for s in (train, test))
    kept, held = hold_out(train.labels, recipe.data.val, recipe.seed, classes=spec.classes)
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


def is_path(name: str | Path | DatasetSpec) -> bool:
    """Whether DATA is a folder or a CSV rather than a name; a name wins, and `./mnist` is a folder."""
    if not isinstance(name, str):
        return isinstance(name, Path)
    return name not in DATASETS and (
        "/" in name or "\\" in name or name.endswith((".csv", ".tsv")) or Path(name).exists()
    )


def _load_own(
    path: Path,
    recipe: Recipe,
    limit: int | None,
    pinned: Mapping[str, str] | None,
    progress: Callable[[int, int], None] | None,
) -> Data:
    found = read_pictures(path, recipe, pinned, limit, progress)
    return Data(
        name=found.name,
        classes=found.classes,
        input=found.input,
        mean=found.mean,
        std=found.std,
        flip_ok=found.flip_ok,
        sha256=found.sha256,
        train=found.train,
        val=found.val,
        test=found.test,
        limit=limit,
        folder=str(path.absolute()),
        files=found.files,
        bad=found.bad,
        said=found.said,
    )


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
    classes: int = 0,
    balanced: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch, from `first_step` on: (uint8 (B, C, H, W), int64 (B,)) on the split's device; where the
    augmentation mixes images, the labels are the shares of `classes` classes, float (B, classes), each row's sum 1.

    Order and augmentation come from (seed, epoch, step) alone, so an epoch can be taken up anywhere. See `draw` for
    `balanced`.
    """
    device = split.labels.device
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
        images, labels = split.at(chosen), split.labels[chosen]
        if changes:
            # step + 1: numpy pads seeds with zeros, so step 0 would draw the numbers that made the order
            generator = torch.Generator(device).manual_seed(mix_seed(seed, epoch, step + 1))
            images = augment(images, augmentation, generator, None if mirrored is None else mirrored[chosen])
            if augmentation.mixup or augmentation.cutmix:
                images, labels = mix(images, labels, classes, augmentation, generator)
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
