"""The model file: one safetensors with the weights and, in its metadata, all that is needed to rebuild the network,
prepare a picture for it, name its answers, and check that it still gives the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import tensors
from .errors import UserError, one_line
from .manifest import FORMAT, Golden, Manifest, format_of, require_format
from .models import MODELS, channels_last, is_outside, rebuild
from .operating import difference
from .tensors import DAMAGE, model_tensors, read_metadata, reading, write_sealed

TENSORS = 10_000  # of a network; the largest known have some 3,000


@dataclass(frozen=True)
class ModelFile:
    """`model` takes uint8 (N, C, H, W) and gives logits (N, len(manifest.classes))."""

    model: nn.Module
    manifest: Manifest
    golden: Golden

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, C, H, W) -> float32 (N, K), without gradients."""
        with torch.inference_mode():
            return self.model(torch.as_tensor(images)).float().numpy()


def save_model(path: Path, file: ModelFile) -> None:
    """Write `file` to `path`, whole or not at all, and sealed.

    Raises:
        UserError: the disk refuses, or nobody could read it: see the limits in docs/model-file.md.
    """
    golden = {
        "golden.images": torch.as_tensor(file.golden.images),
        "golden.logits": torch.as_tensor(file.golden.logits),
    }
    weights = model_tensors(file.model)
    try:
        file.golden.check(file.manifest)
        if len(weights) > TENSORS:
            raise ValueError(f"it has {len(weights):,} tensors; {TENSORS:,} are allowed")
        metadata = {"format": "convlens", "version": str(FORMAT), "config": file.manifest.to_json()}
        write_sealed(path, weights | golden, metadata)
    except (TypeError, ValueError) as error:  # TypeError: JSON knows no dates, say
        raise UserError(f"{path} cannot be written, for it could not be read again: {error}") from error


def load_model(path: str | Path, builder: str | None = None) -> ModelFile:
    """Read a model file of any format so far; the model is in evaluation mode, on the CPU.

    A file may come from anywhere. Everything in it is checked before it is used (docs/model-file.md has the limits),
    and it takes no more memory than a few times its own size. A network that is made by code outside ConvLens is only
    rebuilt where `builder` names that same code: a file must not decide what is imported. That holds for the networks
    of installed packages, timm and torchvision too: whose machine has no timm may have another file of that name beside
    the model. No pretrained weights are fetched. The seal is not checked: see `seal_holds`.

    Raises:
        UserError: no such file, not a model file, damaged, a newer format, or a builder that was not named.
    """
    try:
        with reading(path) as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != "convlens":
                raise UserError(f"{path} is a safetensors file, but not a ConvLens model file")
            require_format(metadata, path)
            return _read(path, opened, Manifest.from_json(metadata["config"]), builder)
    except FileNotFoundError as error:
        raise UserError(f"there is no model file {path}") from error
    except DAMAGE as error:
        raise UserError(f"{path} is not a ConvLens model file, or is damaged: {one_line(error)}") from error


def seal_holds(path: str | Path) -> bool | None:
    """Whether a model file is, byte for byte, what `save_model` wrote; None where it is of format 1, which has no seal.
    It reads the whole file, a little at a time. Who edits a file on purpose can seal it anew: a seal tells of damage
    and of edits, and not of who made them.

    Raises:
        UserError: no such file, or not one of safetensors.
    """
    try:
        holds = tensors.seal_holds(path)
        unsealed = holds is None and format_of(read_metadata(path)) == 1
    except FileNotFoundError as error:
        raise UserError(f"there is no model file {path}") from error
    except DAMAGE as error:
        raise UserError(f"{path} is not a ConvLens model file, or is damaged: {one_line(error)}") from error
    return None if unsealed else bool(holds)


def _read(path: str | Path, opened: Any, manifest: Manifest, builder: str | None) -> ModelFile:
    names = list(opened.keys())
    if len(names) > TENSORS + 2:
        raise ValueError(f"it has {len(names):,} tensors; {TENSORS:,} are allowed")
    if is_outside(manifest.builder) and builder != manifest.builder:
        name = manifest.builder
        raise UserError(
            f"{path} was built by {name}, which is not part of ConvLens; if you trust that code, name it: -m {name}"
        )
    lying = {name: opened.get_tensor(name) for name in names}  # in the mapped file: nothing is read yet
    golden = Golden(*(lying[f"golden.{part}"].numpy() for part in ("images", "logits")))
    golden.check(manifest)
    weights, spec = tensors.state_dict(lying), manifest.input
    if any(not value.numel() for value in weights.values()):
        raise ValueError("it has a tensor without numbers")
    try:
        model = rebuild(
            manifest.builder,
            channels=spec.channels,
            classes=len(manifest.classes),
            size=spec.size,
            args=manifest.args,
            tensors=len(weights),
            numbers=sum(value.numel() for value in weights.values()),
        )
    except UserError as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    wanted = model.state_dict()
    if {name: _kind(value) for name, value in weights.items()} != {name: _kind(wanted[name]) for name in wanted}:
        raise UserError(f"the weights in {path} do not fit the network {manifest.builder} that it names")
    if manifest.builder in MODELS:  # its network has no memory yet
        # clone: else they lie in the mapped file, which Windows would not let anybody replace
        model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    else:
        model.load_state_dict(weights)
    return ModelFile(channels_last(model).eval(), manifest, Golden(golden.images.copy(), golden.logits.copy()))


def _kind(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


def golden_difference(file: ModelFile) -> float:
    """The `difference` between what the model says to the golden images now and the golden logits."""
    return difference(file.logits(file.golden.images), file.golden.logits)
