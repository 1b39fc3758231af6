"""What the report shows of the inside of a network: its layers, its first filters, what it makes of three images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .data import Data
from .errors import UserError
from .explain import feature_maps, first_filters
from .modelfile import ModelFile
from .outcomes import Outcomes
from .summary import summarize
from .thumbnails import filter_tile, map_tile, thumbnail

FILTERS = 64  # of the first convolution at most
LAYERS = 6  # whose maps are shown, from the first to the last
MAPS = 8  # of a layer


def inside(file: ModelFile, data: Data | None, outcomes: Outcomes, say: Callable[..., str]) -> dict[str, Any]:
    """The layer table; the first filters; and where the data is there, the maps of three of its test images: of the
    surest right answer, of the least sure one, and of the surest mistake."""
    model = file.model
    summary = summarize(model, file.input.channels, file.input.size)
    found: dict[str, Any] = {"summary": summary, "filters": None, "examples": []}
    try:
        name, weights = first_filters(model)
    except UserError:  # a network of the user's own need not have a convolution
        return found
    tiles = [(filter_tile(kernel), float(kernel.abs().max())) for kernel in weights[:FILTERS]]
    found["filters"] = {
        "layer": name,
        "tiles": tiles,
        "shape": tuple(weights.shape),
        "colours": weights.shape[1] == 3,
    }
    if data:
        right = outcomes.right.nonzero()[0]
        by_confidence = right[outcomes.confidence[right].argsort(kind="stable")].tolist()
        chosen = [
            (say("the surest right answer"), by_confidence[-1:]),
            (say("the least sure right answer"), by_confidence[:-1][:1]),
            (say("the surest mistake"), outcomes.worst(1).tolist()),
        ]
        found["examples"] = [_example(model, data, outcomes, which, places[0]) for which, places in chosen if places]
    return found


def _example(model: nn.Module, data: Data, outcomes: Outcomes, which: str, place: int) -> dict[str, Any]:
    image = data.test.at(slice(place, place + 1))[0]
    every = feature_maps(model, image)
    some = torch.linspace(0, len(every) - 1, min(LAYERS, len(every))).long().tolist()
    layers = []
    for feature in (every[i] for i in some):
        maps = feature.maps
        strength = maps.abs().mean((1, 2))
        best = strength.topk(min(MAPS, len(maps))).indices.sort().values.tolist()
        low, high = min(float(maps.min()), 0.0), float(maps.max())
        layers.append(
            {
                "name": feature.name.removeprefix("network."),
                "kind": feature.kind,
                "formula": feature.formula,
                "shape": tuple(maps.shape),
                "range": (low, high),
                "tiles": [(channel, map_tile(maps[channel], low, high)) for channel in best],
            }
        )
    truth, said = int(outcomes.labels[place]), int(outcomes.predicted[place])
    return {
        "which": which,
        "name": outcomes.names[place],
        "src": thumbnail(image),
        "true": truth,
        "said": said,
        "p": float(outcomes.probabilities[place, said]),
        "layers": layers,
        "left_out": len(every) - len(some),
    }
