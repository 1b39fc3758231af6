"""What the report shows of the inside of a network: its layers, its first filters, what moves its answer to three
images, a map of the test set as it sees it, and what spoke for its worst mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attribution import attribute
from .channels import RankedLayer, rank_channels
from .data import Data
from .embedding import features_of, pca
from .errors import UserError
from .explain import first_filters
from .modelfile import ModelFile
from .outcomes import Outcomes
from .summary import summarize
from .thumbnails import filter_tile, heat_overlay, map_tile, thumbnail

FILTERS = 64  # of the first convolution at most
LAYERS = 6  # whose maps are shown, from the first to the last
MAPS = 8  # of a layer
ON_THE_MAP = 1000  # test images, from all over the split
EXPLAINED = 6  # mistakes
PASSES = 160  # that explain one: fifty steps of integrated gradients, each forward and, twice as dear, backward
ARITHMETIC = 2e11  # multiply-adds that the map, and the mistakes, may take: of large networks they show less

Say = Callable[..., str]


def inside(file: ModelFile, data: Data | None, outcomes: Outcomes, say: Say) -> dict[str, Any]:
    """All that needs the network; without the data its layers and filters alone. What cannot be made of this network,
    or without an extra, is named in `lacking`."""
    model, summary = file.model, summarize(file.model, file.manifest.input.channels, file.manifest.input.size)
    passes = int(ARITHMETIC / max(summary.macs, 1))
    located, mistakes = min(ON_THE_MAP, max(passes, 100)), min(EXPLAINED, max(passes // PASSES, 1))
    found: dict[str, Any] = {
        "summary": summary,
        "filters": _filters(model),
        "examples": [],
        "map": None,
        "mistakes": [],
        "lacking": [],
    }
    if data is None:
        return found
    for key, title, make in (
        ("examples", say("What the layers make of three images"), lambda: _examples(model, data, outcomes, say)),
        ("map", say("Map of the test images"), lambda: _map(model, data, outcomes, located)),
        (
            "mistakes",
            say("What spoke for the worst mistakes"),
            lambda: [_mistake(model, data, outcomes, place) for place in outcomes.worst(mistakes).tolist()],
        ),
    ):
        found[key] = attempt(title, make, found["lacking"], say) or found[key]
    found["lacking"] = list(dict.fromkeys(found["lacking"]))
    return found


def attempt(title: str, make: Callable[[], Any], lacking: list[str], say: Say) -> Any:
    """What `make` gives, or None and a sentence more in `lacking`: networks of the user's own may do anything, and a
    page without a part is better than none."""
    try:
        return make()
    except UserError as error:  # no convolution, or captum is not installed
        lacking.append(str(error))
    except Exception as error:
        lacking.append(say("{part} was left out: {error}", part=title, error=" ".join(repr(error).split())))
    return None


def _filters(model: nn.Module) -> dict[str, Any] | None:
    try:
        name, weights = first_filters(model)
    except UserError:  # a network of the user's own need not have a convolution
        return None
    tiles = [(filter_tile(kernel), float(kernel.abs().max())) for kernel in weights[:FILTERS]]
    return {"layer": name, "tiles": tiles, "shape": tuple(weights.shape), "colours": weights.shape[1] == 3}


def _examples(model: nn.Module, data: Data, outcomes: Outcomes, say: Say) -> list[dict[str, Any]]:
    """The surest right answer, the least sure one and the surest mistake, each with the channels that moved it most."""
    right = outcomes.right.nonzero()[0]
    by_confidence = right[outcomes.confidence[right].argsort(kind="stable")].tolist()
    chosen = [
        (say("the surest right answer"), by_confidence[-1:]),
        (say("the least sure right answer"), by_confidence[:-1][:1]),
        (say("the surest mistake"), outcomes.worst(1).tolist()),
    ]
    chosen = [(which, places) for which, places in chosen if places]
    places = torch.tensor([places[0] for _, places in chosen])
    images = data.test.at(places)
    ranking = rank_channels(model, images, torch.as_tensor(outcomes.predicted[places.numpy()]))
    some = torch.linspace(0, len(ranking.layers) - 1, min(LAYERS, len(ranking.layers))).long().tolist()
    return [
        {
            **_head(outcomes, int(place), images[i]),
            "which": which,
            "layers": [_layer(ranking.layers[number], i, images.shape[2:]) for number in some],
            "left_out": len(ranking.layers) - len(some),
        }
        for i, ((which, _), place) in enumerate(zip(chosen, places, strict=True))
    ]


def _layer(found: RankedLayer, image: int, size: torch.Size) -> dict[str, Any]:
    maps = found.maps[image]
    low, high = min(float(maps.min()), 0.0), float(maps.max())
    tiles = []
    for channel in found.top(MAPS, image):
        top, left, bottom, right = found.field.pixels(*found.peak(channel, image))
        tiles.append(
            {
                "channel": channel,
                "score": float(found.scores[image, channel]),
                "src": map_tile(maps[channel], low, high),
                # what it saw where it fired most: top, left, bottom and right in percent of the image
                "sees": [
                    f"{100 * part:.1f}" for part in (top / size[0], left / size[1], bottom / size[0], right / size[1])
                ],
            }
        )
    kind = type(found.layer).__name__ + (f" + {found.activation}" if found.activation else "")
    name = found.name.removeprefix("network.")
    return {"name": name, "kind": kind, "formula": found.formula, "shape": tuple(maps.shape), "tiles": tiles}


def _map(model: nn.Module, data: Data, outcomes: Outcomes, count: int) -> dict[str, Any]:
    """Where test images lie by the first two principal components of the features before the last layer."""
    places = torch.linspace(0, len(data.test) - 1, min(count, len(data.test))).long()
    features, _ = features_of(model, data.test, places)
    coordinates, shares = pca(features)
    coordinates = F.pad(coordinates, (0, 2 - coordinates.shape[1]))  # of a single feature there is one component
    chosen = places.numpy()
    return {
        "points": coordinates.numpy(),
        "shares": shares.tolist(),
        "labels": outcomes.labels[chosen],
        "predicted": outcomes.predicted[chosen],
        "names": [outcomes.names[place] for place in chosen],
    }


def _mistake(model: nn.Module, data: Data, outcomes: Outcomes, place: int) -> dict[str, Any]:
    """What spoke for the class that was said, and what for the true one: Grad-CAM of each of them, and integrated
    gradients of the difference of their logits, of which each sign speaks for one of the two."""
    image = data.test.at(slice(place, place + 1))
    said, truth = int(outcomes.predicted[place]), int(outcomes.labels[place])
    maps = [attribute(model, image, "grad-cam", target=label)[0].heat.clamp(min=0) for label in (said, truth)]
    (both,) = attribute(model, image, "integrated-gradients", target=said, against=truth)
    largest = both.heat.abs().max().clamp(min=1e-12)
    # the root shows what is weak, too: a few pixels hold most of what integrated gradients find
    parts = [(sign * both.heat / largest).clamp(min=0).sqrt() for sign in (1, -1)]
    rows = [
        ("Grad-CAM", [heat_overlay(image[0], heat / heat.max().clamp(min=1e-12)) for heat in maps]),
        ("Integrated gradients", [heat_overlay(image[0], part) for part in parts]),
    ]
    return {**_head(outcomes, place, image[0]), "rows": rows}


def _head(outcomes: Outcomes, place: int, image: Tensor) -> dict[str, Any]:
    said = int(outcomes.predicted[place])
    return {
        "name": outcomes.names[place],
        "src": thumbnail(image),
        "true": int(outcomes.labels[place]),
        "said": said,
        "p": float(outcomes.probabilities[place, said]),
        "q": float(outcomes.probabilities[place, outcomes.labels[place]]),
    }
