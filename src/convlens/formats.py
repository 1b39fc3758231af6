"""Any file that a network left in, opened: what everybody who uses one sees of it, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import UserError
from .manifest import Golden, Manifest
from .packing import read

EXPORTED = ".onnx", ".pt2"  # the endings of what `export` writes for others


@dataclass(frozen=True)
class Shipped:
    """A network as it left. `outputs` takes uint8 images (N, C, H, W) and gives logits and probabilities, float32
    (N, K), on the CPU; a model file has no probabilities in it: None. `format` is safetensors, onnx or pt2; `precision`
    fp32 or int8, of its weights and the maps between its layers."""

    path: Path
    format: str
    manifest: Manifest
    golden: Golden
    outputs: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    precision: str = "fp32"

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The first of `outputs`."""
        return self.outputs(images)[0]


def open_shipped(
    path: str | Path, builder: str | None = None, content: bytes | None = None, threads: int | None = None
) -> Shipped:
    """Open a model file, an .onnx or .pt2 that ConvLens exported, the model file of a run folder, or the .onnx of a
    folder that holds a page.

    An .onnx needs onnxruntime, and not PyTorch; `threads` compute it, by default as many as onnxruntime takes. For
    `builder` see `modelfile.load_model`. `content` is what `read_exported` gave of the file, where it was read already.

    Raises:
        UserError: there is none, or it is damaged, or none of ConvLens'.
    """
    path = shipped_file(path)
    if path.suffix == ".onnx":
        from .onnxfile import load_onnx

        onnx = load_onnx(path, content, threads)
        return Shipped(path, "onnx", onnx.manifest, onnx.golden, onnx.outputs, onnx.precision)
    if path.suffix == ".pt2":
        from .pt2file import load_pt2

        pt2 = load_pt2(path, content)
        return Shipped(path, "pt2", pt2.manifest, pt2.golden, pt2.outputs)
    from .modelfile import load_model

    file = load_model(path, builder)
    return Shipped(path, "safetensors", file.manifest, file.golden, lambda images: (file.logits(images), None))


def read_exported(path: Path) -> bytes | None:
    """The bytes of an .onnx or .pt2, so that those that are hashed are those that are opened; None of a model file,
    which is never read as a whole. Raises UserError as `packing.read` does."""
    return read(path) if path.suffix in EXPORTED else None


def seal_holds(path: Path, content: bytes | None = None) -> bool | None:
    """Whether a file is what was sealed, to the last bit; None where it has no seal, which of files for others is none
    that ConvLens writes. For `content` see `open_shipped`. Raises UserError where it is no such file."""
    if path.suffix == ".onnx":
        from . import onnxfile

        return onnxfile.seal_holds(path, content)
    if path.suffix == ".pt2":
        from . import pt2file

        return pt2file.seal_holds(path, content)
    from . import modelfile

    return modelfile.seal_holds(path)


def shipped_file(path: str | Path) -> Path:
    """The file that is meant: itself, or of a folder its model.safetensors, else its model.onnx. Raises UserError where
    a folder has neither."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / name for name in ("model.safetensors", "model.onnx") if (path / name).exists()]
    if not found:
        raise UserError(f"{path} holds no model.safetensors: it is no run folder, or one not finished yet")
    return found[0]
