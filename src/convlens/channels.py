"""Channels: which of them move a prediction, what in the data fires them, and which are dead or there twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .explain import NO_GRADIENT, as_input
from .models.ensemble import is_mirrored, without_mirrored
from .models.sizes import Windowed
from .splits import Split
from .trace import Field, LayerMaps, trace

MOST = 2000, 2000 * 32 * 32  # images that a survey walks over, and their pixels, unless it is told otherwise
NUMBERS = 64 * 3 * 32 * 32  # pixels and channels of a batch: the maps of all layers are in memory at once
ALIKE = 0.99  # correlation of two channels' maps from which they count as duplicates
CONSTANT = 1e-6  # standard deviation, as a share of the root mean square, up to which a channel is constant
SILENT = {
    "relu",
    "relu6",
    "gelu",
    "silu",
    "mish",
    "hardswish",
}  # activations that let nothing, or next to it, through below 0
EQUAL = 1e-10  # mean squared difference, as a share of the mean square, up to which maps are equal to rounding


@dataclass(frozen=True)
class RankedLayer:
    """A convolution or pooling: its `maps` (N, C, H, W) for N images, behind batch norm and `activation` where these
    are its own, and what every channel moves the logit asked for by, `scores` (N, C)."""

    name: str
    layer: Windowed
    maps: Tensor
    scores: Tensor
    field: Field
    formula: str
    activation: str

    def top(self, count: int = 4, image: int = 0) -> list[int]:
        """The channels with the largest scores of either sign, largest first."""
        return self.scores[image].abs().sort(descending=True, stable=True).indices[:count].tolist()

    def peak(self, channel: int, image: int = 0) -> tuple[int, int]:
        """(row, column) of the map where the channel fires most."""
        row, column = divmod(int(self.maps[image, channel].argmax()), self.maps.shape[3])
        return row, column


@dataclass(frozen=True)
class Ranking:
    """For N images: `logits` (N, K), the `classes` (N,) whose logits were asked for, and the layers in the order in
    which they ran."""

    logits: Tensor
    classes: Tensor
    layers: tuple[RankedLayer, ...]

    def to_dict(self, count: int = 4, image: int = 0) -> dict[str, Any]:
        """What JSON takes, of one image: every layer's first `count` channels, each with its score, its largest value
        `peak`, the place `at` which that is (row, column), and the pixels that it `sees` there (top, left, and bottom,
        right behind the last)."""
        rows = []
        for layer in self.layers:
            top = []
            for channel in layer.top(count, image):
                place = layer.peak(channel, image)
                top.append(
                    {
                        "channel": channel,
                        "score": layer.scores[image, channel].item(),
                        "peak": layer.maps[image, channel][place].item(),
                        "at": [*place],
                        "sees": [*layer.field.pixels(*place)],
                    }
                )
            about = {"name": layer.name, "kind": type(layer.layer).__name__, "activation": layer.activation}
            maps = {"channels": layer.maps.shape[1], "size": [*layer.maps.shape[2:]], "formula": layer.formula}
            rows.append({**about, **maps, "top": top})
        chosen = int(self.classes[image])
        return {"class": chosen, "logit": self.logits[image, chosen].item(), "layers": rows}


def rank_channels(model: nn.Module, images: Tensor, classes: Tensor | None = None) -> Ranking:
    """How much every channel moves the logit of `classes` (N,), by default those predicted, for images (N, C, H, W):
    activation x gradient, summed over the map.

    That is, to first order, what the logit loses where the channel is set to zero (Molchanov et al., arXiv:1611.06440,
    who take it without its sign). Everything is on the CPU; the model is left as it was, without gradients.

    Raises:
        UserError: no gradient reaches any of its convolutions and poolings.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixels = as_input(model, images).detach().clone()
        pixels.requires_grad_()  # so that there is a graph also where weights are frozen
        logits, layers = trace(model, pixels)
        chosen = logits.argmax(1) if classes is None else classes.to(logits.device)
        edges = [layer.edge for layer in layers if layer.edge]
        asked = logits.gather(1, chosen[:, None]).sum()  # images do not meet in evaluation mode
        grads = torch.autograd.grad(asked, edges, allow_unused=True) if edges and asked.requires_grad else ()
    if layers and all(slope is None for slope in grads):
        raise UserError(NO_GRADIENT)
    slopes = iter(grads)
    ranked = []
    for found in layers:
        maps, slope = found.maps.detach().float(), next(slopes) if found.edge else None
        scores = torch.zeros(maps.shape[:2]) if slope is None else (maps * slope.float()).sum((2, 3)).cpu()
        if is_mirrored(model) and len(maps) == 2 * len(images):  # what it moves through both
            maps, scores = maps[: len(images)], scores[: len(images)] + scores[len(images) :]
        ranked.append(
            RankedLayer(found.name, found.layer, maps.cpu(), scores, found.field, found.formula, found.activation)
        )
    return Ranking(logits.detach().float().cpu(), chosen.cpu(), tuple(ranked))


def strongest_slices(layer: nn.Conv2d, channel: int, count: int = 4) -> tuple[list[int], Tensor]:
    """Of a channel's filter the input channels with the largest weights (by their norm), largest first, and those
    slices (count, kH, kW)."""
    weights = layer.weight[channel].detach().float().cpu()
    order = weights.flatten(1).norm(dim=1).sort(descending=True, stable=True).indices[:count]
    first = channel // (layer.out_channels // layer.groups) * len(weights)  # its group's first input channel
    return (first + order).tolist(), weights[order]


@dataclass(frozen=True)
class Duplicate:
    """A channel whose maps are those of an earlier one, `of`, but for scale and offset, to the `correlation`; `equal`
    where the numbers are the same, too."""

    channel: int
    of: int
    correlation: float
    equal: bool


@dataclass(frozen=True)
class SurveyedLayer:
    """What fires the C channels of a layer, over a data set. `peaks` (C, 9) their largest values, one an image and the
    largest first, `images` (C, 9) those images' places in the split, `spots` (C, 9, 2) row and column on the map; fewer
    than nine where the split is smaller."""

    name: str
    kind: str
    activation: str
    field: Field
    formula: str
    size: tuple[int, int]
    peaks: Tensor
    images: Tensor
    spots: Tensor
    dead: tuple[int, ...]
    duplicates: tuple[Duplicate, ...]


@dataclass(frozen=True)
class Survey:
    """Of `images` images out of `of`, spread evenly over a split."""

    images: int
    of: int
    layers: tuple[SurveyedLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """What JSON takes: dead and duplicate channels, and the images that fire each most."""
        rows = []
        for layer in self.layers:
            about = {"name": layer.name, "kind": layer.kind, "activation": layer.activation, "formula": layer.formula}
            rows.append(
                {
                    **about,
                    "channels": len(layer.peaks),
                    "dead": [*layer.dead],
                    "duplicates": [asdict(duplicate) for duplicate in layer.duplicates],
                    "images": layer.images.tolist(),
                    "peaks": layer.peaks.tolist(),
                }
            )
        return {"images": self.images, "of": self.of, "layers": rows}


def survey(model: nn.Module, split: Split, most: int | None = None, best: int = 9) -> Survey:
    """Walk over `most` images of a split, spread evenly over it, and note of every channel the `best` images that fire
    it most, whether it is dead, and whether it repeats an earlier one. By default 2,000 images, fewer where they are
    larger than 32 x 32, but 200 at least.

    Dead is a channel that is constant, or never above 0 behind ReLU or one of its kin that let next to nothing through
    there (not behind a leaky one, whose values below 0 are a signal, too). A duplicate's
    maps correlate by 0.99 or more with an earlier channel's, over all images and places. Memory holds the maps of one
    batch, the `best` of every channel and the channels' products.
    """
    places = sample(split, most)
    tallies: dict[str, _Tally] = {}
    with torch.inference_mode():
        for part in places.split(max(NUMBERS // split.store[0].numel(), 1)):
            for found in trace(model, split.at(part.to(split.labels.device)))[1]:
                tallies.setdefault(found.name, _Tally(found, best)).add(
                    without_mirrored(model, found.maps, len(part)).float(), part
                )
    return Survey(len(places), len(split), tuple(tally.result() for tally in tallies.values()))


def sample(split: Split, most: int | None = None) -> Tensor:
    """At most so many places of a split, evenly spread, because that of a folder is sorted by class; by default those
    of a `survey`."""
    most = most or max(min(MOST[0], MOST[1] // split.store[0, 0].numel()), 200)
    return torch.linspace(0, len(split) - 1, min(most, len(split)), dtype=torch.float64).long()


class _Tally:
    """What is kept of one layer while the images go by."""

    def __init__(self, found: LayerMaps, best: int) -> None:
        channels, device = found.maps.shape[1], found.maps.device
        device = torch.device("cpu") if device.type == "mps" else device  # which has no double precision
        self.best, self.size = best, found.maps.shape[2:]
        self.found = replace(found, maps=found.maps.new_empty(0))  # the first batch's need not be kept
        self.peaks = torch.empty(channels, 0)
        self.images = self.flat = torch.empty(channels, 0, dtype=torch.int64)
        self.count = 0
        self.sums = torch.zeros(channels, dtype=torch.float64, device=device)
        self.products = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, maps: Tensor, places: Tensor) -> None:
        """Maps (N, C, H, W) of the images at these places (N,)."""
        channels = maps.transpose(0, 1).flatten(2)  # (C, N, H * W)
        peaks, flat = (found.cpu() for found in channels.max(2))
        peaks, flat = torch.cat([self.peaks, peaks], 1), torch.cat([self.flat, flat], 1)
        images = torch.cat([self.images, places.expand(len(maps[0]), -1)], 1)
        order = peaks.sort(dim=1, descending=True, stable=True).indices[
            :, : self.best
        ]  # of equal ones the first images
        self.peaks, self.flat, self.images = (kept.gather(1, order) for kept in (peaks, flat, images))
        values = channels.flatten(1).to(self.sums.device).double()
        self.sums += values.sum(1)
        self.products += values @ values.T
        self.count += values.shape[1]

    def result(self) -> SurveyedLayer:
        found, width = self.found, self.size[1]
        means, squares = (self.sums / self.count).cpu(), (self.products / self.count).cpu()
        covariance = squares - means[:, None] * means
        spread = covariance.diag().clamp(min=0).sqrt()
        dead = spread <= CONSTANT * squares.diag().sqrt()
        if found.activation in SILENT:
            dead |= self.peaks[:, 0] <= 0
        correlation = (covariance / (spread[:, None] * spread)).nan_to_num(0)
        correlation[dead], correlation[:, dead] = 0, 0
        return SurveyedLayer(
            name=found.name,
            kind=type(found.layer).__name__,
            activation=found.activation,
            field=found.field,
            formula=found.formula,
            size=(self.size[0], width),
            peaks=self.peaks,
            images=self.images,
            spots=torch.stack([self.flat // width, self.flat % width], 2),
            dead=tuple(dead.nonzero().flatten().tolist()),
            duplicates=tuple(_duplicates(correlation.tril(-1), squares)),
        )


def _duplicates(earlier: Tensor, squares: Tensor) -> Iterator[Duplicate]:
    """From the correlations of every channel (row) with those before it, and the mean products of all."""
    for channel in (earlier.amax(1) >= ALIKE).nonzero().flatten().tolist():
        of = int(earlier[channel].argmax())
        square = squares[channel, channel]
        equal = square + squares[of, of] - 2 * squares[channel, of] <= EQUAL * square
        yield Duplicate(channel, of, min(earlier[channel, of].item(), 1.0), bool(equal))
