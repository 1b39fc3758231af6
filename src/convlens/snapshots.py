"""The network of a run as it was: in the end, at an epoch that was kept, or as far as a training is now."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from . import checkpoint
from .datasets import get_spec
from .errors import UserError
from .images import InputSpec
from .manifest import Manifest
from .models import build
from .run import Run


class ReplacedError(UserError):
    """The network that was asked is not kept any more."""


@dataclass(frozen=True)
class Snapshot:
    """`model` in evaluation mode on the CPU; `stamp` tells it from every other, also from one of the same name that was
    written later. While a run is trained its manifest has no calibration and no metrics."""

    model: nn.Module
    manifest: Manifest
    stamp: str


def kept_epochs(run: Run) -> list[int]:
    """The epochs whose weights were kept (`keep_epochs` of the recipe), 0 before the first step."""
    found = (re.fullmatch(r"epoch-(\d+)", path.stem) for path in run.of_epoch(0).parent.glob("epoch-*.safetensors"))
    return sorted(int(match[1]) for match in found if match)


def stamp(run: Run, epoch: int | None = None) -> str:
    """What changes whenever the file that `snapshot` reads does; empty where there is none."""
    path = _file(run, epoch)
    try:
        return f"{path.name}-{path.stat().st_mtime_ns}"
    except FileNotFoundError:
        return ""


def snapshot(run: Run, epoch: int | None = None, builder: str | None = None) -> Snapshot:
    """The network of a finished run, or of one that is trained as it was last saved; or of an epoch. For `builder` see
    `load_model`.

    Raises:
        UserError: nothing was saved yet, or that epoch was not kept.
    """
    name = stamp(run, epoch)
    there(run)
    if epoch is None and run.finished:
        file = run.model_file(builder)
        return Snapshot(file.model, file.manifest, name)
    saved = checkpoint.read(_file(run, epoch))
    if saved is None and epoch is None:
        raise UserError("the first epoch is not done: there is no network to ask yet")
    if saved is None:
        listed = ", ".join(map(str, kept_epochs(run))) or "none; --set keep_epochs=50 keeps them"
        raise UserError(f"the weights of epoch {epoch} were not kept; kept were: {listed}")
    model, manifest = untrained(run, builder)
    model.load_state_dict(checkpoint.weights(saved))
    return Snapshot(model, manifest, name)


def there(run: Run) -> None:
    """Raises UserError where the run's folder is not there any more."""
    if not run.path.is_dir():
        raise UserError(f"the run folder {run.path} is gone")


def untrained(run: Run, builder: str | None = None) -> tuple[nn.Module, Manifest]:
    """The network that a run trains, with other weights, and what is known of it before the end."""
    recipe, seen = run.recipe, run.environment["data"]
    name = recipe.model.name
    if ":" in name and builder != name:
        raise UserError(f"the run {run.path} trains {name}, which is not part of ConvLens; to run that code: -m {name}")
    if seen.get("folder"):
        spec = InputSpec((recipe.data.size[0], recipe.data.size[1]), recipe.data.channels or 3, recipe.data.resize)
    else:
        known = get_spec(seen["name"])
        spec = InputSpec(known.size, known.channels)
    classes = tuple(seen["classes"])
    model = build(
        name,
        channels=spec.channels,
        classes=len(classes),
        size=spec.size,
        args=recipe.model.args,
        pretrained=False,
    )
    return model.eval(), Manifest(name, recipe.model.args, spec, classes, recipe.to_dict(), {})


def _file(run: Run, epoch: int | None) -> Path:
    if epoch is not None:
        return run.of_epoch(epoch)
    return run.path / "model.safetensors" if run.finished else run.last
