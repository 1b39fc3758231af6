"""Batch norm's statistics, measured on the images as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .distributed import mine
from .evaluation import LARGEST, evaluating
from .splits import Split

BATCH = 128  # images; torch averages the batches' statistics, and in smaller ones the variance is less certain


def measure_norms(model: nn.Module, split: Split, places: Tensor) -> None:
    """Replace the running mean and variance of every batch norm in training mode by those of what it meets when the
    model looks at the images of `split` at `places` (N,): all else in evaluation mode, so without dropout, every member
    of an ensemble at every image, and at its mirror image where it answers for that too.

    The running averages are of the last few batches, cropped, recoloured and often smaller than the images that the
    network will answer for, of which the statistics are others: Wu and Johnson, arXiv:2105.07576, who call this precise
    batch norm, and Touvron et al., arXiv:1906.06423, on sizes. Norms in evaluation mode are left alone: they did not
    learn. The weights are not touched. `num_batches_tracked` counts the batches of this pass. Processes that train
    together share the images out as they do a batch.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms or not len(places):
        return
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    size = max(min(BATCH, LARGEST // split.store[0].numel()), 2)
    with evaluating(model), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
                norm.train()
            for part in places.tensor_split(-(-len(places) // size)):  # alike, because each counts as much
                images, _, _ = mine(split.at(part).to(device), split.labels[part])
                model(images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
