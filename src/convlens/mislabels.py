"""Likely wrong labels: confident learning on the out-of-fold predictions of a small network.

The method is that of Northcutt, Jiang and Chuang (arXiv:1911.00068), written anew: their cleanlab is under the AGPL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .album import Album
from .data import Data
from .device import mix_seed
from .evaluation import logits_of
from .findings import Finding, number, single
from .images import InputSpec
from .pictures import mean_and_std
from .recipe import AugmentConfig, DataConfig
from .recipes import PHOTOS, SPEED_CIFAR10_70
from .run import make_model
from .splits import Split
from .training import train

FOLDS = 4
ROUNDS = 2  # of other folds and networks, whose predictions are averaged: fewer are doubted for nothing
SIDES = (18, 32)  # pixels a side, at least and at most: of 18, whitening and three halvings leave 2
PASSES = 30_000  # images that a fold's network sees in training: some seconds on two cores
EPOCHS = (1, 16)  # at least and at most: what has learnt a small set by heart is too sure of all the rest
SURE = 0.5  # what another class is likelier by is named in any case
RECIPE = replace(
    PHOTOS,
    name="check-labels",
    note="A small network for out-of-fold predictions, nothing more.",
    model=SPEED_CIFAR10_70.model,
    augment=AugmentConfig(flip=True, shift=2, fill="reflect"),
    data=DataConfig(val=0.0),
)


@dataclass(frozen=True)
class Doubt:
    """The picture at `place` is called something else: `seems` is the class that the network sees, `probability` its
    probability, `own` that of the label."""

    place: int
    seems: int
    probability: float
    own: float


def out_of_fold(
    pictures: Split,
    classes: tuple[str, ...],
    flip_ok: bool,
    together: Sequence[Sequence[int]] = (),
    tell: Callable[[str], None] | None = None,
) -> Tensor:
    """Probabilities (N, K) float32 of every picture, by networks that were trained on the other folds only: the mean
    over ROUNDS.

    Places that are `together` (copies) stand in one fold, for a network knows what it has seen. `tell` gets a sentence
    a fold.
    """
    pictures = resized(pictures)
    epochs = round(PASSES * FOLDS / (FOLDS - 1) / len(pictures))
    channels, height, width = pictures.store.shape[1:]
    spec = InputSpec((height, width), channels)
    found = torch.zeros(len(pictures), len(classes))
    for i in range(ROUNDS * FOLDS):
        recipe = replace(RECIPE, epochs=min(max(epochs, EPOCHS[0]), EPOCHS[1]), seed=i // FOLDS)
        fold = folds(pictures.labels, together, recipe.seed)
        held = fold == i % FOLDS
        kept, test = pictures.take(~held), pictures.take(held)
        data = Data("fold", classes, spec, *mean_and_std(kept), flip_ok, sha256="", train=kept, val=None, test=test)
        model = make_model(recipe, data)
        for _ in train(model, data, recipe):
            pass
        probabilities = logits_of(model, test, tta="mirror" if flip_ok else "none").softmax(1)
        found[held] += probabilities / ROUNDS
        if tell:
            right = (probabilities.argmax(1) == test.labels).float().mean().item() if held.any() else 0.0
            tell(f"labels, fold {i + 1} of {ROUNDS * FOLDS}: {right:.1%} of the held-out pictures as labelled")
    return found


def resized(pictures: Split) -> Split:
    """Pictures of 18 to 32 pixels a side: what a small network can tell apart it can in these, and fast."""
    height, width = (min(max(side, SIDES[0]), SIDES[1]) for side in pictures.store.shape[2:])
    if (height, width) == tuple(pictures.store.shape[2:]):
        return pictures
    small = torch.cat(
        [
            F.interpolate(pictures.at(places).float(), (height, width), mode="bilinear", antialias=True).round().byte()
            for places in pictures.blocks()
        ]
    )
    return Split(small.contiguous(memory_format=torch.channels_last), pictures.labels, pictures.index)


def folds(labels: Tensor, together: Sequence[Sequence[int]], seed: int) -> Tensor:
    """The fold 0..FOLDS-1 of every picture, int64 (N,): every class spread evenly, at random."""
    generator = np.random.default_rng(mix_seed(seed, 0xF01D))
    fold = np.zeros(len(labels), np.int64)
    for label in labels.unique().tolist():
        members = generator.permutation(np.flatnonzero(labels.numpy() == label))
        fold[members] = (np.arange(len(members)) + generator.integers(FOLDS)) % FOLDS
    for places in together:
        fold[list(places)] = fold[places[0]]
    return torch.from_numpy(fold)


def doubtful(probabilities: Tensor, labels: Tensor) -> list[Doubt]:
    """The labels that probabilities (N, K) contradict, the surest first: of the lowest probability.

    Confident learning counts a picture as of class j where its probability reaches the class's threshold, the mean
    probability of j over the pictures that are labelled j; of several such classes the most probable. The share of
    those labelled i that count as others, times all that are labelled i, is how many labels i are wrong: those of the
    lowest probability ("prune by class"). Where classes are easy, one wrong label may reach no threshold, and none is
    counted: so those are added where another class is likelier by SURE.
    """
    classes = probabilities.shape[1]
    own = probabilities[torch.arange(len(labels)), labels]
    sizes = labels.bincount(minlength=classes)
    thresholds = torch.zeros(classes).index_add_(0, labels, own) / sizes.clamp(min=1)
    reached = (probabilities >= thresholds) & (sizes > 0)
    counted = reached.any(1)
    as_class = probabilities.where(reached, torch.tensor(-1.0)).argmax(1)
    others = labels[counted & (as_class != labels)].bincount(minlength=classes)
    errors = (sizes * others / labels[counted].bincount(minlength=classes).clamp(min=1)).round().int()
    probability, seems = probabilities.where(sizes > 0, torch.tensor(-1.0)).max(1)
    wrong = probability - own >= SURE
    for label, count in enumerate(errors.tolist()):
        members = (labels == label).nonzero().flatten()
        wrong[members[own[members].argsort(stable=True)[:count]]] = True
    places = (wrong & (seems != labels)).nonzero().flatten()
    places = places[own[places].argsort(stable=True)]
    return [Doubt(i, int(seems[i]), probability[i].item(), own[i].item()) for i in places.tolist()]


def of_labels(album: Album, doubts: Sequence[Doubt]) -> Iterator[Finding]:
    """Labels that a network contradicts that never saw the picture."""
    if doubts:
        notes = (
            f"labelled {album.label(doubt.place)}, looks like {album.classes[doubt.seems]} ({doubt.probability:.0%})"
            for doubt in doubts
        )
        yield Finding(
            "wrong-labels",
            "warning",
            len(doubts),
            f"{number(len(doubts), 'label')} that may be wrong, the likeliest first",
            "Look at them and correct what is wrong: many will be right, and only hard to tell.",
            single(album, [doubt.place for doubt in doubts], notes),
        )
