"""A run without its pictures, which take longer to draw than a small network to train."""

from __future__ import annotations

from pathlib import Path

from convlens import Data, Recipe, Run
from convlens.fitting import advance, finish
from convlens.run import start


def fit_undrawn(recipe: Recipe, data: Data, out: Path) -> Run:
    """convlens.fit(), which draws nothing."""
    run = start(recipe, data, out)
    for _ in advance(run, data):
        pass
    finish(run, data, plots=False, report=False)
    return run
