"""ConvLens: from images to a convolutional network that you can trust.

The names below are loaded when they are first used, so that `import convlens` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "DATASETS": "datasets",
    "Attribution": "attribution",
    "Data": "data",
    "DatasetSpec": "datasets",
    "Epoch": "training",
    "InputSpec": "images",
    "MODELS": "models",
    "Metrics": "evaluation",
    "Predictor": "predict",
    "RECIPES": "recipes",
    "Recipe": "recipe",
    "Run": "run",
    "Split": "splits",
    "UserError": "errors",
    "attribute": "attribution",
    "build": "models",
    "capture": "explain",
    "check": "checking",
    "class_means": "wishes",
    "compare": "comparing",
    "deletion": "faithfulness",
    "evaluate": "evaluation",
    "export": "exporting",
    "feature_maps": "explain",
    "features_of": "embedding",
    "find_lr": "lr_find",
    "fit": "fitting",
    "insertion": "faithfulness",
    "load": "data",
    "make_model": "run",
    "maximise": "wishes",
    "rank_channels": "channels",
    "robustness": "robust",
    "summarize": "summary",
    "survey": "channels",
    "train": "training",
    "verify": "verifying",
}

__all__ = [
    "DATASETS",
    "MODELS",
    "RECIPES",
    "Attribution",
    "Data",
    "DatasetSpec",
    "Epoch",
    "InputSpec",
    "Metrics",
    "Predictor",
    "Recipe",
    "Run",
    "Split",
    "UserError",
    "__version__",
    "attribute",
    "build",
    "capture",
    "check",
    "class_means",
    "compare",
    "deletion",
    "evaluate",
    "export",
    "feature_maps",
    "features_of",
    "find_lr",
    "fit",
    "insertion",
    "load",
    "make_model",
    "maximise",
    "rank_channels",
    "robustness",
    "summarize",
    "survey",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'convlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
