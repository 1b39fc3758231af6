"""Confident learning against the paper's definition, and wrong labels that a small network finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convlens import mislabels
from convlens.mislabels import FOLDS, doubtful, folds, out_of_fold
from convlens.splits import Split


def test_doubts_are_the_off_diagonal_of_the_confident_joint() -> None:
    """A loop over the definition in arXiv:1911.00068, section 3.1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (500,), generator=generator)
    logits = 2 * torch.randn(500, 4, generator=generator)
    logits[torch.arange(500), labels] += 1.5
    p = logits.softmax(1)
    threshold = [p[labels == j, j].mean().item() for j in range(4)]
    expected = {}
    for i in range(500):
        reached = [j for j in range(4) if p[i, j] >= threshold[j]]
        if reached:
            best = max(reached, key=lambda j: p[i, j].item())
            if best != labels[i]:
                expected[i] = (best, (p[i, best] - p[i, labels[i]]).item())
    found = doubtful(p, labels, margin=-1)
    assert {d.place: d.seems for d in found} == {i: best for i, (best, _) in expected.items()}
    margins = [d.probability - d.own for d in found]
    assert margins == sorted(margins, reverse=True)
    assert len(doubtful(p, labels, margin=0.5)) == sum(margin >= 0.5 for _, margin in expected.values()) > 0


def test_a_class_that_nobody_is_labelled_draws_no_doubt() -> None:
    p = torch.tensor([[0.2, 0.1, 0.7], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    assert doubtful(p, torch.tensor([0, 0, 1]), margin=0) == []


def test_folds_are_even_and_keep_copies_together() -> None:
    labels = torch.arange(5).repeat_interleave(40)
    fold = folds(labels, [], 0)
    for label in range(5):
        assert fold[labels == label].bincount().tolist() == [10] * FOLDS
    assert not torch.equal(fold, folds(labels, [], 1))
    together = folds(labels, [(0, 60, 170), (3, 4)], 0)
    assert len(set(together[[0, 60, 170]].tolist())) == 1 == len(set(together[[3, 4]].tolist()))
    assert (together != fold).sum() <= 3


@pytest.mark.parametrize("side", [5, 20])
def test_wrong_labels_are_found(monkeypatch, side) -> None:
    """Colours with noise, one of twenty labelled as another: all are found, and nothing else."""
    monkeypatch.setattr(mislabels, "PASSES", 1500)
    random = np.random.default_rng(0)
    true = torch.arange(240) % 3
    colours = np.eye(3) * 150 + 50
    pixels = random.normal(colours[true.numpy()][:, :, None, None], 40, (240, 3, side, side))
    labels = true.clone()
    wrong = list(range(0, 240, 20))
    labels[wrong] = (labels[wrong] + 1) % 3
    pictures = Split(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), labels, torch.arange(240))
    said: list[str] = []
    p = out_of_fold(pictures, ("a", "b", "c"), True, (), said.append)
    torch.testing.assert_close(p.sum(1), torch.ones(240))
    assert len(said) == FOLDS
    found = doubtful(p, labels)
    assert sorted(d.place for d in found) == wrong
    assert all(d.seems == true[d.place] for d in found)
    assert torch.equal(p, out_of_fold(pictures, ("a", "b", "c"), True, ()))
