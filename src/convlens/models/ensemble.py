"""Several networks that answer together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOST = 16  # members


class MirrorImages(nn.Module):
    """(N, C, H, W) -> (2 N, C, H, W): the images, and behind them their mirror images."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, images.flip(3)])


class MeanLogits(nn.Module):
    """(N, M, K), of an image a row of each member, and then of each in a mirror -> their mean (N, K)."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.mean(1)


class Ensemble(nn.Module):
    """Networks whose answer is the mean of their logits (N, K). They err differently, because each starts from weights
    of its own and, in training mode, learns from its own share of every batch as if that was the batch; so an epoch
    costs what one of a single network costs.

    Ensembles of networks with random starts: Hansen and Salamon, 1990 (doi:10.1109/34.58871), Lakshminarayanan et al.,
    arXiv:1612.01474, who average probabilities; of photographs the mean of the logits told as many right. A batch of
    less than two images for each member teaches all of them together: batch norm wants two.

    With `mirror` each also answers for the mirror image, behind the image in one batch of twice as many (but for
    training), and those logits count as much: test-time augmentation that leaves with the network.
    """

    def __init__(self, members: Sequence[nn.Module], mirror: bool = False) -> None:
        super().__init__()
        self.mirror = MirrorImages() if mirror else None
        self.members = nn.ModuleList(members)
        self.mean = MeanLogits()

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) >= 2 * len(self.members):
            shares = images.tensor_split(len(self.members))
            return torch.cat([_alone(m(share), len(images)) for m, share in zip(self.members, shares, strict=True)])
        if self.training or not self.mirror:
            return self.mean(torch.stack([member(images) for member in self.members], 1))
        views = self.mirror(images)
        logits = torch.stack([member(views) for member in self.members], 1).unflatten(0, (2, -1))
        return self.mean(logits.transpose(0, 1).flatten(1, 2))


def _alone(logits: Tensor, batch: int) -> Tensor:
    """The same, with a gradient as large as if the loss was the mean over these images, and not over all the batch's.
    Without it every learning rate would have to grow with the number of members."""
    return _Steeper.apply(logits, batch / len(logits)) if logits.requires_grad else logits


class _Steeper(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, times: float) -> Tensor:
        ctx.times = times
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.times, None


def ensemble_of(model: nn.Module) -> Ensemble | None:
    """The ensemble that a model from `build` is; None where it is one network."""
    network = getattr(model, "network", model)
    return network if isinstance(network, Ensemble) else None


def members_of(model: nn.Module) -> list[nn.Module]:
    """The networks that answer together in a model from `build`; the model itself where it is one network."""
    together = ensemble_of(model)
    return [*together.members] if together else [model]


def is_mirrored(model: nn.Module) -> bool:
    """Whether layers of a model from `build` meet mirror images, behind the images in a batch of twice as many."""
    together = ensemble_of(model)
    return together is not None and together.mirror is not None


def without_mirrored(model: nn.Module, values: Tensor, count: int) -> Tensor:
    """What a layer of the model made of the `count` images themselves."""
    return values[:count] if is_mirrored(model) else values
