"""Embeddings: what the last linear layer sees of an image, its neighbours there, what is typical of a class and what is
not, and a map of a data set on paper."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError
from .evaluation import LARGEST, evaluating
from .explain import as_input, uncompiled
from .models.ensemble import members_of, without_mirrored
from .splits import Split


@dataclass(frozen=True)
class Neighbours:
    """For each of N images the nearest ones of others: their `places` (N, k), nearest first, and the `distances`
    (N, k), 1 - cosine, from 0 (the same direction) to 2."""

    places: Tensor
    distances: Tensor


def embed(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The features (N, D) and the logits (N, K) of images (N, C, H, W), float32 on the CPU, in evaluation mode and
    without gradients; the model is left as it was.

    The features are what goes into the linear layer that runs last; in a network without linear layers, into the
    convolution that runs last. Maps and tokens are averaged over their places. Those of an ensemble's members stand
    side by side.

    Raises:
        UserError: a network that has neither.
    """
    last: dict[int, Tensor] = {}  # by member
    handles = []
    for place, member in enumerate(members := members_of(model)):
        kind = nn.Linear if any(isinstance(layer, nn.Linear) for layer in member.modules()) else nn.Conv2d
        for layer in member.modules():
            if isinstance(layer, kind):
                handles.append(layer.register_forward_pre_hook(lambda m, x, n=place: last.update({n: _row(m, x[0])})))
    try:
        with evaluating(model), uncompiled(), torch.no_grad():
            logits = model(as_input(model, images))
    finally:
        for handle in handles:
            handle.remove()
    if len(last) < len(members):
        raise UserError("this network has no linear layer and no convolution: there is nothing to take for features")
    features = torch.cat([last[place] for place in range(len(members))], 1)
    return without_mirrored(model, features, len(images)).cpu(), logits.float().cpu()


def _row(layer: nn.Module, given: Tensor) -> Tensor:
    """(N, D) of what a layer is given, maps and tokens averaged over their places."""
    features = given.float()
    if features.ndim > 2:
        return features.flatten(1, -2).mean(1) if isinstance(layer, nn.Linear) else features.flatten(2).mean(2)
    return features


def features_of(model: nn.Module, split: Split, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The features (N, D) and the logits (N, K) of a split, or of some `places` of it, batch by batch; see `embed`."""
    places = torch.arange(len(split)) if places is None else places
    size = max(min(1000, LARGEST // split.store[0].numel()), 1)
    both = [embed(model, split.at(part.to(split.labels.device))) for part in places.split(size)]
    features, logits = (torch.cat(parts) for parts in zip(*both, strict=True))
    return features, logits


def nearest(asked: Tensor, known: Tensor, count: int = 8) -> Neighbours:
    """For each of N features (N, D) the `count` nearest of those `known` (M, D), by their cosine; of equally near ones
    the first."""
    cosines = F.normalize(asked.double()) @ F.normalize(known.double()).T
    best = cosines.sort(dim=1, descending=True, stable=True)
    return Neighbours(best.indices[:, :count], (1 - best.values[:, :count]).clamp(min=0).float())


def typical(features: Tensor, prototypes: int = 4, criticisms: int = 4) -> tuple[list[int], list[int]]:
    """Of images with these features (N, D): prototypes, which together stand for all of them, and criticisms, which
    these do not stand for. Their places, each in the order in which they were chosen.

    MMD-critic (Kim, Khanna and Koyejo, "Examples are not enough, learn to criticize!", NeurIPS 2016): greedily the
    prototypes that bring the maximum mean discrepancy down most, then the criticisms where the witness function is
    largest, kept apart by the log-determinant of their kernel. The kernel is Gaussian on features of length 1, and its
    width is the median distance. Memory holds N x N numbers.
    """
    unit = F.normalize(features.double())
    squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    kernel = torch.exp(-squared / squared.median().clamp(min=1e-12))
    chosen: list[int] = []
    near = kernel.mean(1)
    for _ in range(min(prototypes, len(kernel))):
        m = len(chosen) + 1
        among = kernel[:, chosen].sum(1)
        # the discrepancy's part that changes: 2 / m of the means, less 1 / m^2 of the products, of all chosen
        gain = 2 * (near[chosen].sum() + near) / m - (kernel[chosen][:, chosen].sum() + 2 * among + 1) / m**2
        gain[chosen] = -torch.inf
        chosen.append(int(gain.argmax()))
    witness = (near - kernel[:, chosen].mean(1)).abs()
    against: list[int] = []
    left = kernel.diag().clone()  # of each image the part of its kernel that those chosen do not explain
    basis = torch.empty(0, len(kernel), dtype=torch.float64)
    for _ in range(min(criticisms, len(kernel) - len(chosen))):
        gain = witness + left.clamp(min=1e-12).log()
        gain[chosen + against] = -torch.inf
        new = int(gain.argmax())
        against.append(new)
        row = (kernel[new] - basis[:, new] @ basis) / left[new].clamp(min=1e-12).sqrt()  # a row of its Cholesky factor
        basis, left = torch.cat([basis, row[None]]), left - row**2
    return chosen, against


def pca(features: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """The first principal components of features (N, D): coordinates (N, count) float32, and each one's share of the
    variance (count,); zeros behind as many as N and D allow. The sign is such that a component's largest weight is
    positive, as in scikit-learn."""
    centred = features.double() - features.double().mean(0)
    tall = len(centred) > centred.shape[1]  # the eigenvectors of the smaller product give those of the other
    variances, vectors = torch.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
    largest = vectors.flip(1)[:, :count]
    axes = F.normalize((largest if tall else centred.T @ largest).T)
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    shares = variances.flip(0)[:count].clamp(min=0) / variances.sum().clamp(min=1e-300)
    coordinates, lacking = centred @ axes.T, (0, count - len(axes))
    return F.pad(coordinates, lacking).float(), F.pad(shares, lacking).float()


def umap(features: Tensor, seed: int = 0) -> Tensor:
    """Coordinates (N, 2) by UMAP (McInnes, Healy and Melville, arXiv:1802.03426) with its own settings and the cosine.

    Raises:
        UserError: umap-learn is not installed.
    """
    reducer: Any = require_umap().UMAP(metric="cosine", random_state=seed, n_jobs=1)
    return torch.as_tensor(reducer.fit_transform(features.numpy()), dtype=torch.float32)


def require_umap() -> ModuleType:
    """umap. Raises UserError where umap-learn is not installed."""
    try:
        import umap as package
    except ImportError as error:
        raise UserError("a map by UMAP needs umap-learn: pip install 'convlens[map]'") from error
    return package
