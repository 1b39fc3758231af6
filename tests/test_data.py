"""data: what is held out, the order and the parts of an epoch, and that the file's layout leaves no trace."""

import gzip
import hashlib
import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import WeightedRandomSampler

from convlens.data import batches, draw, load, steps_per_epoch
from convlens.datasets import DATASETS, MNIST, get_spec
from convlens.device import mix_seed
from convlens.images import InputSpec
from convlens.recipe import AugmentConfig, Recipe
from convlens.recipes import AUGMENTATIONS
from convlens.splits import Split, hold_out
from refusals import refused

SPEC = replace(MNIST, counts=(60, 20), size=(5, 4))
NONE = AugmentConfig()
ALL = AugmentConfig(flip=True, shift=2, cutout=3)
BOTH_SIDES = AugmentConfig(flip=True, alternate=True)


@pytest.fixture(autouse=True)
def _no_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVLENS_DATA", raising=False)
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))


# hold_out -------------------------------------------------------------------------------------------------------


def labels_of(*counts: int) -> torch.Tensor:
    """`counts[i]` labels i, mixed."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return torch.from_numpy(np.random.default_rng(3).permutation(labels))


@pytest.mark.parametrize(
    ("counts", "share", "held_counts"),
    [
        ((10, 20, 30), 0.1, [1, 2, 3]),
        ((13, 18, 26, 4), 0.1, [1, 2, 3, 1]),  # rounded, at least one
        ((100, 7), 0.25, [25, 2]),
        ((2, 2), 0.5, [1, 1]),
        ((10, 10), 0.9, [9, 9]),
    ],
)
def test_of_every_class_its_share(counts: tuple[int, ...], share: float, held_counts: list[int]) -> None:
    labels = labels_of(*counts)
    kept, held = hold_out(labels, share, seed=1)
    assert torch.bincount(labels[held], minlength=len(counts)).tolist() == held_counts
    assert kept.dtype == held.dtype == torch.int64
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))  # complete and disjoint
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())


def test_counts_are_those_of_scikit_learn() -> None:
    labels = labels_of(500, 120, 60, 320)
    kept, held = hold_out(labels, 0.15, seed=4)
    theirs_kept, theirs_held = train_test_split(labels.numpy(), test_size=0.15, stratify=labels.numpy(), random_state=0)
    assert torch.bincount(labels[held]).tolist() == np.bincount(theirs_held).tolist()
    assert torch.bincount(labels[kept]).tolist() == np.bincount(theirs_kept).tolist()


def test_hold_out_is_a_matter_of_the_seed_alone() -> None:
    labels = labels_of(50, 50)
    _, first = hold_out(labels, 0.2, seed=7)
    np.random.default_rng().random()
    torch.manual_seed(5)
    _, again = hold_out(labels, 0.2, seed=7)
    _, other = hold_out(labels, 0.2, seed=8)
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_hold_out_nothing() -> None:
    kept, held = hold_out(labels_of(1, 2), 0, seed=0)
    assert kept.tolist() == [0, 1, 2]
    assert held.tolist() == []


@pytest.mark.parametrize(("counts", "share", "label", "size"), [((5, 1), 0.1, 1, 1), ((20, 2), 0.9, 1, 2)])
def test_class_that_is_too_small(counts: tuple[int, ...], share: float, label: int, size: int) -> None:
    refused(
        lambda: hold_out(labels_of(*counts), share, seed=0),
        f"class number {label} has {size} training images",
        f"to hold {share:.0%} out",
        "set data.val=0",
    )


# batches --------------------------------------------------------------------------------------------------------


def numbered(count: int) -> Split:
    """Images that tell their number by their first pixel and their label."""
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 6, 7), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return Split(torch.from_numpy(images), torch.arange(count), torch.arange(count))


def order(split: Split, batch_size: int, seed: int, epoch: int) -> list[int]:
    return [label for _, labels in batches(split, batch_size, NONE, seed, epoch) for label in labels.tolist()]


@pytest.mark.parametrize("labels", [labels_of(5, 40, 1, 14), torch.tensor([3] * 20 + [0] * 40)])
def test_balanced_order_is_that_of_torchs_weighted_sampler(labels: torch.Tensor) -> None:
    split = Split(torch.zeros(60, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(60))
    weights = [1 / labels.tolist().count(label) for label in labels.tolist()]
    for epoch in (1, 2):
        generator = torch.Generator().manual_seed(mix_seed(9, epoch))
        assert draw(split, 9, epoch, True).tolist() == list(WeightedRandomSampler(weights, 60, generator=generator))
    assert draw(split, 9, 1, True).tolist() != draw(split, 9, 2, True).tolist()


def test_balanced_epochs_meet_every_class_alike_and_in_a_class_every_image() -> None:
    labels = labels_of(100, 300, 10)
    split = Split(torch.zeros(410, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(410))
    met = torch.cat([draw(split, 0, epoch, True) for epoch in range(1, 301)]).bincount(minlength=410).double()
    assert met.sum() == 300 * 410
    for label, size in enumerate((100, 300, 10)):
        of_class, expected = met[labels == label], 300 * 410 / 3 / size
        assert of_class.mean() == pytest.approx(expected, rel=0.02)  # 41,000 draws: a hundredth is two deviations
        assert of_class.var() == pytest.approx(expected, rel=0.5 if size > 50 else 2.5)  # about Poisson's


def test_balanced_batches_can_be_taken_up_anywhere() -> None:
    split = replace(numbered(50), labels=labels_of(40, 6, 4))
    whole = list(batches(split, 8, ALL, seed=2, epoch=3, balanced=True))
    assert [len(labels) for _, labels in whole] == [8] * 6 + [2]
    for first in (1, 4, 6):
        rest = list(batches(split, 8, ALL, 2, 3, first, balanced=True))
        for (images, labels), (other_images, other_labels) in zip(whole[first:], rest, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(50, 16, [16, 16, 16, 2]), (48, 16, [16] * 3), (5, 8, [5])])
def test_each_image_once_an_epoch(count: int, batch_size: int, sizes: list[int]) -> None:
    split = numbered(count)
    got = list(batches(split, batch_size, NONE, seed=0, epoch=1))
    assert [len(labels) for _, labels in got] == sizes
    assert steps_per_epoch(split, batch_size) == len(sizes)
    images = torch.cat([images for images, _ in got])
    labels = torch.cat([labels for _, labels in got])
    assert sorted(labels.tolist()) == list(range(count))
    assert labels.tolist() != list(range(count))  # shuffled
    assert images.dtype == torch.uint8
    assert torch.equal(images, split.images[labels])  # each with its own label


def test_order_is_a_matter_of_seed_and_epoch_alone() -> None:
    split = numbered(50)
    first = order(split, 16, seed=3, epoch=2)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert order(split, 16, seed=3, epoch=2) == first
    assert order(split, 7, seed=3, epoch=2) == first
    augmented = [label for _, labels in batches(split, 16, ALL, 3, 2) for label in labels.tolist()]
    assert augmented == first
    state = torch.get_rng_state()
    assert order(split, 16, seed=3, epoch=3) != first
    assert order(split, 16, seed=4, epoch=2) != first
    assert order(split, 16, seed=2, epoch=3) != first
    assert torch.equal(torch.get_rng_state(), state)  # dropout's random numbers are not drawn from


@pytest.mark.parametrize("augmentation", [NONE, ALL, BOTH_SIDES], ids=["plain", "augmented", "both sides"])
def test_an_epoch_can_be_taken_up_anywhere(augmentation: AugmentConfig) -> None:
    split = numbered(50)
    whole = list(batches(split, 16, augmentation, seed=5, epoch=4))
    for first_step in range(5):
        rest = list(batches(split, 16, augmentation, seed=5, epoch=4, first_step=first_step))
        assert len(rest) == 4 - first_step
        for (images, labels), (wanted_images, wanted_labels) in zip(rest, whole[first_step:], strict=True):
            assert torch.equal(images, wanted_images)
            assert torch.equal(labels, wanted_labels)


def test_augmentation_changes_with_step_epoch_and_seed() -> None:
    """The same picture 64 times: what differs is what was drawn for it."""
    image = numbered(1).images
    split = Split(image.expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.int64), torch.arange(64))

    def first_two(seed: int, epoch: int) -> list[torch.Tensor]:
        return [images for images, _ in batches(split, 32, ALL, seed, epoch)]

    a, b = first_two(0, 1)
    c, d = first_two(0, 2)
    e, f = first_two(1, 1)
    drawn = [a, b, c, d, e, f]
    assert not any(torch.equal(x, y) for i, x in enumerate(drawn) for y in drawn[:i])
    assert torch.equal(first_two(0, 1)[1], b)
    assert torch.equal(split.images, image.expand(64, -1, -1, -1))  # the images themselves stay


def sides(split: Split, epoch: int, seed: int = 4, batch_size: int = 16) -> list[bool]:
    """Whether each image of the split is mirrored in an epoch."""
    found: dict[int, bool] = {}
    for images, labels in batches(split, batch_size, BOTH_SIDES, seed, epoch):
        for image, label in zip(images, labels.tolist(), strict=True):
            plain = split.images[label]
            found[label] = torch.equal(image, plain.flip(2))
            assert found[label] ^ torch.equal(image, plain)
    return [found[i] for i in range(len(split))]


def test_any_two_epochs_in_a_row_show_both_sides_of_every_image() -> None:
    split = numbered(60)
    first = sides(split, 1)
    assert 15 < sum(first) < 45  # a coin for each
    for epoch in (2, 4, 10):
        assert sides(split, epoch) == [not side for side in first]
    for epoch in (3, 5, 9):
        assert sides(split, epoch) == first
    assert sides(split, 1, batch_size=7) == first
    assert sides(split, 1, seed=5) != first
    drawn_anew = [images for images, _ in batches(split, 60, AugmentConfig(flip=True), 4, 1)]
    assert not torch.equal(drawn_anew[0], next(batches(split, 60, BOTH_SIDES, 4, 1))[0])


def test_alternating_alone_mirrors_nothing() -> None:
    split = numbered(20)
    images, labels = next(batches(split, 20, AugmentConfig(alternate=True), 0, 1))
    assert torch.equal(images, split.images[labels])


@pytest.mark.parametrize(
    "augmentation",
    [NONE, ALL, AugmentConfig(flip=True, alternate=True, shift=2, fill="reflect"), AugmentConfig(crop=[5])],
    ids=["plain", "all", "reflect", "crop"],
)
def test_batches_lie_pixel_by_pixel(augmentation: AugmentConfig) -> None:
    split = numbered(50)
    split = replace(split, store=split.images.contiguous(memory_format=torch.channels_last))
    for images, _ in batches(split, 16, augmentation, 0, 1):
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_levels_go_on_from_any_step_too(epoch: int) -> None:
    split = numbered(50)
    split = replace(split, store=split.images.contiguous(memory_format=torch.channels_last))
    for level in AUGMENTATIONS.values():
        whole = list(batches(split, 16, level, 5, epoch, classes=50))
        rest = list(batches(split, 16, level, 5, epoch, 2, classes=50))
        assert [len(images) for images, _ in whole] == [16, 16, 16, 2]
        for (images, labels), (wanted_images, wanted_labels) in zip(rest, whole[2:], strict=True):
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(images, wanted_images)
            assert torch.equal(labels, wanted_labels)


# load -----------------------------------------------------------------------------------------------------------


def lay(folder: Path, zipped: bool = False, change: bool = False, label: int | None = None) -> Path:
    """A small data set in MNIST's files."""
    folder = folder / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for gz, _ in SPEC.downloads:
        count = SPEC.counts[0 if "train" in gz else 1]
        if "images" in gz:
            array = rng.integers(0, 256, (count, *SPEC.size), dtype=np.uint8)
            array[-1, -1, -1] = change
        else:
            array = (np.arange(count) % 10).astype(np.uint8)
            if label is not None:
                array[0] = label
        data = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()
        (folder / (gz if zipped else gz.removesuffix(".gz"))).write_bytes(gzip.compress(data) if zipped else data)
    return folder.parent.parent


def test_load(tmp_path: Path) -> None:
    root = lay(tmp_path)
    data = load(SPEC, Recipe().override({"data.val": 0.2}), root)
    assert (data.name, data.classes, data.flip_ok) == ("mnist", tuple("0123456789"), False)
    assert data.input == InputSpec((5, 4), 1)
    assert (data.mean, data.std) == (MNIST.mean, MNIST.std)
    assert data.val is not None
    assert [len(split) for split in (data.train, data.val, data.test)] == [50, 10, 20]
    assert torch.bincount(data.val.labels).tolist() == [1] * 10
    assert sorted(torch.cat([data.train.index, data.val.index]).tolist()) == list(range(60))
    assert data.test.index.tolist() == list(range(20))

    everything = load(SPEC, Recipe().override({"data.val": 0.0}), root)
    assert everything.val is None
    assert everything.train.index.tolist() == list(range(60))
    for part in (data.train, data.val):  # index leads back to the file
        assert torch.equal(everything.train.images[part.index], part.images)
        assert torch.equal(everything.train.labels[part.index], part.labels)
    for split in (data.train, data.val, data.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == split.index.dtype == torch.int64
        assert split.images.shape[1:] == (1, 5, 4)
        split.images[0] = 0  # writable: a read-only tensor would warn


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    val = Recipe().override({"data.val": 0.2})
    plain = load(SPEC, None, lay(tmp_path / "plain")).sha256
    assert len(plain) == 64
    assert load(SPEC, None, lay(tmp_path / "zipped", zipped=True)).sha256 == plain
    assert load(SPEC, val.override({"seed": 5}), tmp_path / "plain").sha256 == plain
    assert load(SPEC, None, lay(tmp_path / "pixel", change=True)).sha256 != plain
    assert load(SPEC, None, lay(tmp_path / "label", label=3)).sha256 != plain


def test_colour_images_lie_pixel_by_pixel_and_are_hashed_as_the_file_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout in memory is no part of the content: the sha256 is that of (N, C, H, W), as it always was."""
    rng = np.random.default_rng(0)
    train, test = (
        (rng.integers(0, 256, (n, 3, 5, 4), dtype=np.uint8), np.arange(n, dtype=np.int64) % 10) for n in (60, 20)
    )
    monkeypatch.setattr("convlens.data.read", lambda *_: (train, test))
    data = load(replace(DATASETS["cifar10"], counts=(60, 20), size=(5, 4)), Recipe().override({"data.val": 0.2}))
    assert data.val is not None
    for split, (images, labels) in ((data.train, train), (data.val, train), (data.test, test)):
        for part in (split, split.first(10), split.take(torch.arange(3)), split.to(torch.device("cpu"))):
            assert part.images.is_contiguous(memory_format=torch.channels_last)
            assert not part.images.is_contiguous()
        assert np.array_equal(split.images.numpy(), images[split.index.numpy()])
        assert np.array_equal(split.labels.numpy(), labels[split.index.numpy()])
    content = b"".join(array.tobytes() for array in (*train, *test))
    assert data.sha256 == hashlib.sha256(content).hexdigest()


def test_the_seed_decides_what_is_held_out(tmp_path: Path) -> None:
    root, recipe = lay(tmp_path), Recipe().override({"data.val": 0.2})
    held = [load(SPEC, recipe.override({"seed": seed}), root).val for seed in (0, 0, 1)]
    first, again, other = (split.index.tolist() for split in held if split)
    assert first == again != other


@pytest.mark.parametrize(
    ("limit", "train", "test"), [(30, 3, 1), (120, 6, 2), (10, 1, 1), (1, 1, 1), (1000, 6, 2), (None, 6, 2)]
)
def test_limit_takes_the_first_of_every_class(tmp_path: Path, limit: int | None, train: int, test: int) -> None:
    data = load(SPEC, Recipe().override({"data.val": 0.0}), lay(tmp_path), limit)
    assert data.train.index.tolist() == list(range(10 * train))  # the labels are 0, 1, ... 9, 0, 1, ...
    assert data.test.index.tolist() == list(range(10 * test))


def test_limit_keeps_the_proportions_and_the_order() -> None:
    split = replace(numbered(50), labels=torch.tensor([0] * 30 + [1] * 18 + [2] * 2))
    assert split.first(25).index.tolist() == [*range(15), *range(30, 39), 48]
    assert split.first(5).index.tolist() == [0, 1, 2, 30, 31, 48]  # at least one of each
    assert split.first(50).index.tolist() == split.first(51).index.tolist() == list(range(50))


def test_limit_that_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    refused(lambda: load(SPEC, None, lay(tmp_path), limit=10), "too few to hold 10% out")


def test_data_set_by_name() -> None:
    assert get_spec("cifar10") is DATASETS["cifar10"]
    refused(lambda: load("mnits"), "unknown data set 'mnits'; did you mean 'mnist'?", "`convlens datasets` lists them")


def test_the_specs_are_whole() -> None:
    for name, spec in DATASETS.items():
        assert spec.name == name
        assert len(spec.mean) == len(spec.std) == spec.channels
        assert len(set(spec.classes)) == len(spec.classes) == (100 if name == "cifar100" else 10)
        assert all(len(sha256) == 64 for _, sha256 in spec.downloads)
        assert all(url.endswith("/") for url in spec.mirrors)
    assert not any(DATASETS[name].flip_ok for name in ("mnist", "kmnist", "mnist-5k"))


def test_moving(tmp_path: Path) -> None:
    data = load(SPEC, None, lay(tmp_path)).to(torch.device("meta"))
    assert data.val is not None
    for split in (data.train, data.val, data.test):
        assert {t.device.type for t in (split.images, split.labels, split.index)} == {"meta"}


def test_moving_a_part_of_a_store_block_by_block() -> None:
    """cpu:0 is another device than cpu to `to`, though it is the same."""
    store = torch.randint(0, 256, (2000, 64, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    rows = torch.randperm(2000)[:1500]
    split = Split(store, rows % 7, torch.arange(1500), rows)
    assert len(list(split.blocks())) > 2
    moved = split.to(torch.device("cpu:0"))
    assert moved.rows is None
    assert torch.equal(moved.store, store[rows])
    assert moved.store.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.labels, split.labels)
