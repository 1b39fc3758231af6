"""Predictor: pictures in, labels and probabilities out, with the preprocessing that the model file carries."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import UserError
from .images import preprocess
from .modelfile import ModelFile, load_model

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"})


@dataclass(frozen=True)
class Prediction:
    """Of one file: `top` (class, probability) pairs, likeliest first; empty where `error` says what is wrong."""

    file: str
    top: tuple[tuple[str, float], ...]
    error: str = ""


class Predictor:
    """A model file and the call that uses it; the same rows whichever way pictures come in."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file

    @classmethod
    def load(cls, path: str | Path, builder: str | None = None) -> Predictor:
        """From a model file, or from a run folder that has one. Raises UserError where there is none."""
        path = Path(path)
        if path.is_dir():
            path = path / "model.safetensors"
            if not path.exists():
                raise UserError(
                    f"{path.parent} holds no model.safetensors: it is no run folder, or one not finished yet"
                )
        return cls(load_model(path, builder))

    def probabilities(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> probabilities (N, classes)."""
        with torch.inference_mode():
            return self.file.model(torch.as_tensor(images)).float().softmax(1)

    def predict(self, paths: Iterable[str | Path], top: int = 1, batch_size: int = 64) -> Iterator[Prediction]:
        """A Prediction a file, in order, streaming; a file that cannot be read becomes one with its reason."""
        waiting: list[tuple[str, np.ndarray | None, str]] = []
        for path in paths:
            try:
                waiting.append((str(path), preprocess(path, self.file.input), ""))
            except UserError as error:
                waiting.append((str(path), None, str(error)))
            if len(waiting) == batch_size:
                yield from self._rows(waiting, top)
                waiting = []
        yield from self._rows(waiting, top)

    def _rows(self, waiting: Sequence[tuple[str, np.ndarray | None, str]], top: int) -> Iterator[Prediction]:
        readable = [pixels for _, pixels, _ in waiting if pixels is not None]
        rows = iter(self.probabilities(np.stack(readable)) if readable else ())
        for name, pixels, error in waiting:
            if pixels is None:
                yield Prediction(name, (), error)
                continue
            best = next(rows).topk(min(top, len(self.file.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Prediction(name, tuple((self.file.classes[i], p) for i, p in pairs))


def to_csv(predictions: Iterable[Prediction], top: int) -> str:
    """A line a file: label, probability, and as many pairs more as `top` asks for; then what is wrong with the file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["label", "probability"]
    names += [name for rank in range(2, top + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    writer.writerow(["file", *names, "error"])
    for prediction in predictions:
        cells = [cell for label, p in prediction.top for cell in (label, f"{p:.6f}")] or [""] * len(names)
        writer.writerow([prediction.file, *cells, prediction.error])
    return text.getvalue()


def pictures_in(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Files as they are; of folders every picture below them, sorted, hidden ones passed over.

    Raises:
        UserError: a path that does not exist.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"there is no file or folder {path}")
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
                if file.suffix.lower() in PICTURES and file.is_file() and not hidden:
                    yield file
        else:
            yield path
