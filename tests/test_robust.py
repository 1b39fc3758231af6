"""robustness: against a slow loop, on samples that are what they say, and the curves and the table of it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from convlens import Split, build, robustness
from convlens.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from convlens.device import mix_seed
from convlens.robust import sample
from refusals import refused


class Brightest(nn.Module):
    """Says in which quarter of the image the brightest rows lie: what noise and blur bear, and shifts do not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 3)).reshape(len(images), 4, -1).mean(2) * self.scale


def banded(n: int, counts: tuple[int, ...] | None = None) -> Split:
    labels = torch.cat([torch.full((c,), i) for i, c in enumerate(counts)]) if counts else torch.arange(n) % 4
    images = torch.randint(0, 100, (len(labels), 1, 16, 16), dtype=torch.uint8, generator=torch.Generator())
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 40
    return Split(images, labels, torch.arange(len(labels)))


def test_it_is_a_slow_loop() -> None:
    split, model = banded(60), Brightest().train()
    found = robustness(model, split, seed=5)
    assert model.training
    assert (found.images, found.of) == (60, 60)
    assert found.clean == 1
    assert [row.corruption for row in found.rows] == [*CORRUPTIONS]
    everything = []
    for number, row in enumerate(found.rows):
        assert row.amounts == CORRUPTIONS[row.corruption][1]
        for strength in STRENGTHS:
            draws = torch.Generator().manual_seed(mix_seed(5, 0xBAD, number, strength))
            harmed, right = corrupt(split.images, row.corruption, strength, draws), 0
            for image, label in zip(harmed, split.labels, strict=True):
                right += int(model(image[None])[0].argmax() == label)
            assert row.accuracy[strength - 1] == right / 60
            everything.append(right / 60)
        assert row.mean == pytest.approx(sum(row.accuracy) / 5)
    assert found.mean == pytest.approx(sum(everything) / 40)
    by_name = {row.corruption: row for row in found.rows}
    assert by_name["shift"].accuracy[-1] < 0.9 < by_name["brightness"].accuracy[0]
    loaded = json.loads(json.dumps(found.to_dict()))
    assert loaded["rows"][0]["mean"] == found.rows[0].mean
    assert loaded["mean"] == found.mean


def test_the_seed_decides_and_the_mode_and_random_state_stay() -> None:
    split = banded(40)
    model = build("lenet5", channels=1, classes=4, size=(16, 16)).eval()
    state = torch.get_rng_state()
    told: list[tuple[int, int]] = []
    first = robustness(model, split, seed=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 40) for i in range(40)]
    assert first == robustness(model, split, seed=1)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sample_has_every_class_in_proportion_and_is_drawn() -> None:
    split = banded(0, counts=(400, 200, 40, 3))
    taken = sample(split, 64, seed=0)
    assert taken.labels.bincount().tolist() == [40, 20, 4, 1]
    assert len(set(taken.index.tolist())) == 65
    assert taken.labels.tolist() == split.labels[taken.index].tolist()
    assert sorted(sample(split, 64, seed=0).index.tolist()) == sorted(taken.index.tolist())
    assert sorted(sample(split, 64, seed=1).index.tolist()) != sorted(taken.index.tolist())
    assert len(sample(split, 10_000, seed=0)) == len(split)
    found = robustness(Brightest(), split, limit=64)
    assert (found.images, found.of) == (65, 643)


def test_no_images_are_refused() -> None:
    refused(lambda: robustness(Brightest(), banded(8), limit=0), "the limit is 0")
    refused(lambda: robustness(Brightest(), banded(8).take(torch.arange(0))), "the split has 0")
