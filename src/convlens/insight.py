"""Which figures of channels and embeddings an image gets, and which the network itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

from . import plots
from .channels import NUMBERS, RankedLayer, Ranking, Survey, SurveyedLayer, rank_channels, sample, survey
from .closeup import ROWS, Row, Shown, embedding_map, picture_rows, ranked_channels
from .data import Data
from .embedding import embed, features_of, nearest, pca, typical, umap
from .files import make_folder
from .splits import Split

RANKED = 64  # test images over which the network's own ranking of channels is taken
CLASSES, PAGES = 10, 3  # on a page of typical images, and pages; classes beyond are left out, and that is said


@dataclass(frozen=True)
class Walk:
    """What a walk over training images found: the survey of all channels, and of the images at `places` of the training
    split the `features` (N, D) and `predicted` classes (N,)."""

    data: Data
    survey: Survey
    places: Tensor
    features: Tensor
    predicted: Tensor

    @property
    def extent(self) -> str:
        """Which images it saw, in words."""
        every = len(self.places) == len(self.data.train)
        return f"{len(self.places):,}{'' if every else f' of {len(self.data.train):,}'} training images"


def walk(model: nn.Module, data: Data, most: int | None = None) -> Walk:
    """Look at `most` training images, by default as many as `survey` does."""
    places = sample(data.train, most)
    features, logits = features_of(model, data.train, places)
    return Walk(data, survey(model, data.train, most), places, features, logits.argmax(1))


Block = tuple[RankedLayer, nn.Conv2d | None, tuple[str, ...]]


def blocks(ranking: Ranking) -> list[Block]:
    """The layers to show: a convolution together with the pooling right behind it, whose channels are the same; of the
    two the one that has the activation. Each with its filters and with the lines that name it."""
    layers, found = ranking.layers, list[Block]()
    behind = {a.name: b for a, b in pairwise(layers) if _pools(b, a)}
    merged = {b.name for b in behind.values()}
    for layer in layers:
        if layer.name in merged:
            continue
        convolution = layer.layer if isinstance(layer.layer, nn.Conv2d) else None
        pooling = behind.get(layer.name)
        shown = pooling if pooling and pooling.activation and not layer.activation else layer
        lines = [layer.name.removeprefix("network."), _what(layer), layer.formula.split("  ")[0]]
        if pooling:
            lines += [f"then {_what(pooling)}", pooling.formula.split("  ")[0]]
        height, width = shown.field.largest
        found.append((shown, convolution, (*lines, f"each number sees {height} x {width} pixels")))
    return found


def _pools(layer: RankedLayer, before: RankedLayer) -> bool:
    same = layer.maps.shape[1] == before.maps.shape[1]
    return same and isinstance(before.layer, nn.Conv2d) and not isinstance(layer.layer, nn.Conv2d)


def _what(layer: RankedLayer) -> str:
    _, channels, height, width = layer.maps.shape
    kind = type(layer.layer).__name__ + (f", {layer.activation}" if layer.activation else "")
    return f"{kind}: {channels} maps of {height} x {width}"


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a class's name begins no formula
def draw_image(
    folder: Path,
    model: nn.Module,
    image: Tensor,
    classes: Sequence[str],
    caption: str,
    found: Walk | None = None,
    itself: int | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """The channels that move the prediction for an image uint8 (C, H, W), and, where training images were walked over,
    what else fires the strongest of every layer, and the image's nearest neighbours. The PNGs, and all of it as JSON
    takes it. `caption` says what the network took it for, `itself` which training image it is, if one: that is no
    neighbour of its own.

    Raises:
        UserError: a folder that cannot be written, or a network without a linear layer and without a convolution.
    """
    make_folder(folder)
    ranking = rank_channels(model, image[None])
    shown, predicted = blocks(ranking), int(ranking.classes[0])
    name, logit = classes[predicted], ranking.logits[0, predicted].item()
    text = (
        f"Of every layer the channels that move the logit of {name} ({logit:.2f}) most: activation x gradient, summed "
        "over the map.\n+ speaks for it, − against it: to first order, what the logit would lose without the channel."
        "\n\nFires here: the channel's map; the box marks its largest value.\nSees this: the pixels that this value is "
        "made of.\nFilter: that of the channel, of many slices the strongest; blue is below 0, red above."
    )
    drawn = _pages(folder, "channels", shown, lambda part, t: ranked_channels(image, part, t, text), caption)
    result: dict[str, Any] = {**ranking.to_dict(), "class": name}
    if found is None:
        return drawn, result
    rows = []
    surveyed = {layer.name: layer for layer in found.survey.layers}
    for layer, _, lines in shown:
        channel = layer.top(1)[0]
        top, left, bottom, right = layer.field.pixels(*layer.peak(channel))
        score = layer.scores[0, channel].item()
        here = Shown(image[:, top:bottom, left:right], f"{'+' if score >= 0 else '−'}{abs(score):.2f}")
        rows.append(_row(surveyed[layer.name], channel, found.data, lines, here))
    title = f"{caption}: what else fires the strongest channel of every layer"
    text = f"The nine that fire it most among {found.extent}, each cut to what the channel sees where it fires most."
    heads = ("here", "training images, and their classes")
    drawn += _pages(folder, "examples", rows, lambda part, t: picture_rows(part, t, text, heads), title)
    known = (found.places != (-1 if itself is None else itself)).nonzero().flatten()
    near = nearest(embed(model, image[None])[0], found.features[known])
    train, places = found.data.train, found.places[known[near.places[0]]]
    result["neighbours"] = []
    others = []
    for place, distance in zip(places.tolist(), near.distances[0].tolist(), strict=True):
        label = int(train.labels[place])
        others.append(Shown(_image(train, place), f"{classes[label]}\n{distance:.3f}", label == predicted))
        result["neighbours"].append(
            {"train": place, "class": classes[label], "distance": distance, "file": _file(found.data, place)}
        )
    same = sum(one.right or False for one in others)
    lines = ("nearest neighbours", f"{same} of {len(others)} are {name}", "✓ of the predicted class", "✗ of another")
    text = f"Numbers are distances: 1 − cosine of what the last layer is given, among {found.extent}."
    row = Row(lines, (Shown(image, "this image"),), tuple(others))
    axes = picture_rows([row], f"{caption}: the training images that the network finds most like it", text)
    drawn.append(plots.save(axes, folder / "neighbours.png"))
    return drawn, result


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a class's name begins no formula
def draw_network(folder: Path, model: nn.Module, found: Walk, method: str = "pca") -> tuple[list[Path], dict[str, Any]]:
    """The network itself: what fires the channels that move predictions most, what is typical of every class and what
    is not, and a map of test images by `method`, pca or umap. The PNGs, and all of it as JSON takes it.

    Raises:
        UserError: a folder that cannot be written, or UMAP without its package.
    """
    make_folder(folder)
    data, test = found.data, found.data.test
    places = sample(test)
    ranked = places[torch.linspace(0, len(places) - 1, min(RANKED, len(places))).long()]
    moved: dict[str, Tensor] = {}  # by every channel of a layer, over all images
    for part in ranked.split(max(NUMBERS // test.store[0].numel(), 1)):
        ranking = rank_channels(model, test.at(part))
        for one in ranking.layers:
            moved[one.name] = moved.get(one.name, 0) + one.scores.abs().sum(0)
    shown, surveyed = blocks(ranking), {layer.name: layer for layer in found.survey.layers}
    rows, result = [], found.survey.to_dict()
    for layer, _, lines in shown:
        order = moved[layer.name].sort(descending=True, stable=True).indices
        for channel in order[: max(1, ROWS // len(shown))].tolist():
            rows.append(_row(surveyed[layer.name], channel, data, lines))
    title = "What fires the channels that move predictions most"
    text = f"The nine that fire each most among {found.extent}, cut to what it sees where it fires most."
    drawn = _pages(folder, "examples", rows, lambda part, t: picture_rows(part, t, text), title)
    drawn += _typical(folder, found)
    features, logits = features_of(model, test, places)
    if method == "umap":
        coordinates, names = umap(features), ["UMAP 1", "UMAP 2"]
    else:
        coordinates, shares = pca(features)
        names = [f"component {i + 1}: {share:.0%} of the variance" for i, share in enumerate(shares.tolist())]
    labels, predicted = test.labels[places].cpu(), logits.argmax(1)
    extent = f"{len(places):,}{'' if len(places) == len(test) else f' of {len(test):,}'} test images"
    title = f"{extent} by what the last layer is given ({'UMAP' if method == 'umap' else 'PCA'})"
    axes = embedding_map(coordinates, labels, predicted, data.classes, title, names)
    drawn.append(plots.save(axes, folder / f"map-{method}.png"))
    points = zip(places.tolist(), coordinates.tolist(), predicted.tolist(), strict=True)
    result["map"] = [{"test": place, "at": at, "predicted": data.classes[p]} for place, at, p in points]
    return drawn, result


def _typical(folder: Path, found: Walk) -> list[Path]:
    """A row a class: prototypes, and criticisms beside them."""
    train, classes = found.data.train, found.data.classes
    labels, rows = train.labels[found.places].cpu(), []
    for label, name in enumerate(classes[: PAGES * CLASSES]):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            continue
        both = []
        for chosen in typical(found.features[members], 5, 5):
            said = found.predicted[members[chosen]].tolist()
            pixels = [_image(train, place) for place in found.places[members[chosen]].tolist()]
            both.append(
                tuple(
                    Shown(p) if s == label else Shown(p, classes[s], False) for p, s in zip(pixels, said, strict=True)
                )
            )
        rows.append(Row((name, f"of {len(members):,} images"), both[0], both[1]))
    left_out = f", the first {PAGES * CLASSES} classes" if len(classes) > PAGES * CLASSES else ""
    text = (
        "Prototypes stand for a class together, criticisms are what they do not stand for: MMD-critic (Kim et al. 2016)"
        f" on what the last\nlayer is given, among {found.extent}{left_out}. ✗: what the network wrongly said."
    )
    heads, title = ("prototypes", "criticisms"), "What is typical of a class, and what is not"
    return _pages(folder, "typical", rows, lambda part, t: picture_rows(part, t, text, heads), title, CLASSES)


def findings(survey: Survey) -> list[str]:
    """Dead and duplicate channels in words, a sentence a layer that has any; a pooling that repeats what came into it
    is left out."""
    sentences, before = [], list[str]()
    for layer in survey.layers:
        said = []
        if layer.dead:
            said.append(f"{len(layer.dead)} dead ({_listed(layer.dead)})")
        if layer.duplicates:
            pairs = [f"{d.channel} {'equals' if d.equal else 'repeats'} {d.of}" for d in layer.duplicates]
            said.append(f"{len(pairs)} duplicate ({_listed(pairs)})")
        if said and (layer.kind == "Conv2d" or said != before):
            sentences.append(f"{layer.name}: of {len(layer.peaks)} channels {' and '.join(said)}")
        before = said
    return sentences


def _listed(items: Sequence[object], most: int = 8) -> str:
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def _row(layer: SurveyedLayer, channel: int, data: Data, lines: Sequence[str], *here: Shown) -> Row:
    """The images that fire a channel most, cut to what it sees there."""
    others = []
    for place, spot in zip(layer.images[channel].tolist(), layer.spots[channel].tolist(), strict=True):
        top, left, bottom, right = layer.field.pixels(*spot)
        label = data.classes[int(data.train.labels[place])]
        others.append(Shown(_image(data.train, place)[:, top:bottom, left:right], label))
    about = [line for line in lines[1:] if not line.startswith(("floor", "ceil"))]
    return Row((f"{lines[0]}, channel {channel}", *about), here, tuple(others), layer.field.largest)


def _pages(
    folder: Path, name: str, rows: Sequence[Any], draw: Callable[[Any, str], Any], title: str, most: int = ROWS
) -> list[Path]:
    """Figures of at most so many rows each, about as many in each, numbered where there are several."""
    each = -(-len(rows) // max(-(-len(rows) // most), 1)) or 1
    parts = [rows[i : i + each] for i in range(0, len(rows), each)]
    drawn = []
    for i, part in enumerate(parts, start=1):
        number = f" ({i} of {len(parts)})" if len(parts) > 1 else ""
        path = folder / (f"{name}-{i}.png" if len(parts) > 1 else f"{name}.png")
        drawn.append(plots.save(draw(part, title + number), path))
    return drawn


def _image(split: Split, place: int) -> Tensor:
    return split.at(slice(place, place + 1))[0].cpu()


def _file(data: Data, place: int) -> str | None:
    return data.files[int(data.train.index[place])] if data.files else None
