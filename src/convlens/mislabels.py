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
from .recipe import AugmentConfig, DataConfig, ModelConfig, Recipe
from .recipes import QUICK
from .run import make_model
from .splits import Split
from .training import train

FOLDS = 4
SIDE = 32  # pixels
PASSES = 120_000  # images that a fold's network sees in training: some seconds on two cores
EPOCHS = (3, 30)  # at least and at most
WIDTHS = [32, 64, 128, 256]  # of the network, as many as halve the pictures' shorter side
MARGIN = 0.8  # by how much another class's probability is above the label's; its recall is still to be measured
RECIPE = replace(
    QUICK,
    name="check-labels",
    note="A small network for out-of-fold predictions, nothing more.",
    batch_size=64,
    model=ModelConfig("vgg", args={"convs": 1}),
    augment=AugmentConfig(flip=True, shift=4),
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
    recipe: Recipe = RECIPE,
) -> Tensor:
    """Probabilities (N, K) float32 of every picture, by a network that was trained on the other folds only.

    Places that are `together` (copies of a picture) stand in one fold, for a network knows what it has seen. `tell`
    gets a sentence a fold.
    """
    fold = folds(pictures.labels, together, recipe.seed)
    passes = len(pictures) * (FOLDS - 1) / FOLDS
    pictures = shrunk(pictures)
    widths = WIDTHS[: min(pictures.store.shape[2:]).bit_length() - 1]
    recipe = recipe.override({"model.args.widths": widths})
    recipe = replace(recipe, epochs=min(max(round(PASSES / passes), EPOCHS[0]), EPOCHS[1]))
    found = torch.zeros(len(pictures), len(classes))
    for k in range(FOLDS):
        held = (fold == k).nonzero().flatten()
        data = _data(pictures.take((fold != k).nonzero().flatten()), pictures.take(held), classes, flip_ok)
        model = make_model(recipe, data)
        for _ in train(model, data, recipe):
            pass
        found[held] = logits_of(model, data.test).softmax(1)
        if tell:
            right = (found[held].argmax(1) == data.test.labels).float().mean().item() if len(held) else 0.0
            tell(f"labels, fold {k + 1} of {FOLDS}: {right:.1%} of the held-out pictures as labelled")
    return found


def shrunk(pictures: Split) -> Split:
    """Pictures of at most SIDE pixels a side: what a small network can tell apart it can in these, in a quarter of the
    time or less."""
    height, width = (min(side, SIDE) for side in pictures.store.shape[2:])
    if (height, width) == tuple(pictures.store.shape[2:]):
        return pictures
    small = torch.cat(
        [
            F.interpolate(pictures.at(places).float(), (height, width), mode="bilinear", antialias=True).byte()
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


def doubtful(probabilities: Tensor, labels: Tensor, margin: float = MARGIN) -> list[Doubt]:
    """The labels that probabilities (N, K) contradict, the surest first.

    Confident learning counts a picture as of class j where its probability reaches the class's threshold, the mean
    probability of j over the pictures that are labelled j; of several such classes the most probable. Those that are
    labelled otherwise are the off-diagonal of the confident joint. We take those of a `margin` at least: a small
    network is unsure of many, and a person has to look at each.
    """
    own = probabilities[torch.arange(len(labels)), labels]
    counts = labels.bincount(minlength=probabilities.shape[1])
    thresholds = torch.zeros(probabilities.shape[1]).index_add_(0, labels, own) / counts.clamp(min=1)
    reached = (probabilities >= thresholds) & (counts > 0)
    best, seems = probabilities.where(reached, torch.tensor(-1.0)).max(1)
    wrong = ((seems != labels) & reached.any(1) & (best - own >= margin)).nonzero().flatten()
    wrong = wrong[(best - own)[wrong].argsort(descending=True, stable=True)]
    return [Doubt(i, int(seems[i]), best[i].item(), own[i].item()) for i in wrong.tolist()]


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


def _data(kept: Split, held: Split, classes: tuple[str, ...], flip_ok: bool) -> Data:
    channels, height, width = kept.store.shape[1:]
    mean, std = mean_and_std(kept)
    spec = InputSpec((height, width), channels)
    return Data("fold", classes, spec, mean, std, flip_ok, sha256="", train=kept, val=None, test=held)
