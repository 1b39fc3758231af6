"""Confident learning against the paper's definition, and wrong labels that a small network finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convlens import mislabels
from convlens.mislabels import FOLDS, ROUNDS, doubtful, folds, out_of_fold, resized
from convlens.splits import Split


def test_doubts_are_pruned_by_class_as_the_confident_joint_counts() -> None:
    """A loop over the definitions in arXiv:1911.00068: the confident joint (3.1), prune by class (3.2)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (500,), generator=generator)
    logits = 2 * torch.randn(500, 4, generator=generator)
    logits[torch.arange(500), labels] += 1.5
    p = logits.softmax(1)
    threshold = [p[labels == j, j].mean().item() for j in range(4)]
    joint = [[0] * 4 for _ in range(4)]
    for i in range(500):
        reached = [j for j in range(4) if p[i, j] >= threshold[j]]
        if reached:
            joint[labels[i]][max(reached, key=lambda j: p[i, j].item())] += 1
    expected = set()
    for label in range(4):
        members = sorted((p[i, label].item(), i) for i in range(500) if labels[i] == label)
        count = round(len(members) * (1 - joint[label][label] / sum(joint[label])))  # the joint, calibrated
        expected |= {i for _, i in members[:count] if p[i].argmax() != label}
    assert len(expected) > 50
    expected |= {i for i in range(500) if p[i].max() - p[i, labels[i]] >= 0.5}
    found = doubtful(p, labels)
    assert {d.place for d in found} == expected
    assert all(d.seems == p[d.place].argmax() for d in found)
    own = [d.own for d in found]
    assert own == sorted(own)
    assert own == p[[d.place for d in found], labels[[d.place for d in found]]].tolist()


def test_a_sure_doubt_needs_no_threshold() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    found = doubtful(p, torch.tensor([0, 0, 1, 1, 0, 0]))  # 0.8 and 0.7 are below the mean of class 1, 0.9
    assert [(d.place, d.seems) for d in found] == [(4, 1)]
    assert (found[0].probability, found[0].own) == pytest.approx((0.8, 0.2))


def test_a_class_that_nobody_is_labelled_draws_no_doubt() -> None:
    p = torch.tensor([[0.2, 0.1, 0.7], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    assert doubtful(p, torch.tensor([0, 0, 1])) == []


def test_folds_are_even_and_keep_copies_together() -> None:
    labels = torch.arange(5).repeat_interleave(40)
    fold = folds(labels, [], 0)
    for label in range(5):
        assert fold[labels == label].bincount().tolist() == [10] * FOLDS
    assert not torch.equal(fold, folds(labels, [], 1))
    together = folds(labels, [(0, 60, 170), (3, 4)], 0)
    assert len(set(together[[0, 60, 170]].tolist())) == 1 == len(set(together[[3, 4]].tolist()))
    assert (together != fold).sum() <= 3


@pytest.mark.slow  # test_check.py has the like of it for every day
@pytest.mark.parametrize(("side", "count"), [(4, 240), (40, 120)])
def test_wrong_labels_are_found(side, count) -> None:
    """Colours with noise, one of twenty labelled as another: most are found, in a small set too, and nothing else."""
    pictures, true, wrong = coloured(side, count)
    said: list[str] = []
    p = out_of_fold(pictures, ("a", "b", "c"), True, (), said.append)
    torch.testing.assert_close(p.sum(1), torch.ones(count))
    assert len(said) == FOLDS * ROUNDS
    found = doubtful(p, pictures.labels)
    assert {d.place for d in found} <= set(wrong)
    assert len(found) >= 0.8 * len(wrong)
    assert all(d.seems == true[d.place] for d in found)


def test_predictions_are_the_same_again(monkeypatch) -> None:
    monkeypatch.setattr(mislabels, "EPOCHS", (1, 2))
    pictures, _, _ = coloured(18, 100)
    first = out_of_fold(pictures, ("a", "b", "c"), False, [(0, 3)])
    assert torch.equal(first, out_of_fold(pictures, ("a", "b", "c"), False, [(0, 3)]))


@pytest.mark.parametrize(("size", "to"), [((4, 64), (18, 32)), ((28, 28), (28, 28)), ((100, 20), (32, 20))])
def test_sides_are_brought_to_what_the_network_takes(size, to) -> None:
    store = torch.full((3, 1, *size), 200, dtype=torch.uint8)
    pictures = resized(Split(store, torch.tensor([1, 0]), torch.tensor([7, 9]), torch.tensor([2, 0])))
    assert pictures.images.shape == (2, 1, *to)
    assert (pictures.images == 200).all()
    assert pictures.labels.tolist() == [1, 0]
    assert pictures.index.tolist() == [7, 9]


def coloured(side: int, count: int) -> tuple[Split, torch.Tensor, list[int]]:
    """Pictures of three colours with noise, their true classes, and where the label is another."""
    true = torch.arange(count) % 3
    colours = np.eye(3)[true] * 150 + 50
    pixels = np.random.default_rng(0).normal(colours[:, :, None, None], 40, (count, 3, side, side))
    wrong = list(range(0, count, 20))
    labels = true.clone()
    labels[wrong] = (labels[wrong] + 1) % 3
    return Split(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), labels, torch.arange(count)), true, wrong
