"""export(): a trained network in the formats that others run, each proved on the spot before it is there."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import GATE, UserError, unknown
from .files import disk_error, make_folder, write_whole
from .formats import seal_holds, shipped_file
from .modelfile import load_model
from .onnxexport import export_onnx, to_onnx
from .onnxfile import open_session
from .pt2file import export_pt2
from .quantizing import CALIBRATED, quantised
from .run import Run
from .verifying import Verification, verify
from .webexport import runtime_files, write_web

# The name of the file, or of the folder
TARGETS = {"onnx": "model.onnx", "pt2": "model.pt2", "onnx-int8": "model-int8.onnx", "web": "web"}
TIMED, REPEATS = 64, 15  # images a batch, and batches, that the speed of int8 is the median of


@dataclass(frozen=True)
class Exported:
    """A file that was written and verified. Of int8 `smaller` and `faster` say how many times, beside the same network
    in float32, as onnxruntime runs both on this machine."""

    path: Path
    to: str
    verification: Verification
    smaller: float | None = None
    faster: float | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {"path": str(self.path), "to": self.to, "smaller": self.smaller, "faster": self.faster}
        return {**values, "verification": self.verification.to_dict()}


def export(
    source: str | Path,
    to: str | Sequence[str] = "onnx",
    out: str | Path | None = None,
    builder: str | None = None,
    data_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    runtime: str | Path | None = None,
) -> list[Exported]:
    """Write a run, or a model file, in other formats.

    `to` is a key of TARGETS, or several. `out` is a file where it ends as one of theirs does, else a folder; without it
    the files go to `export/` in the run's folder, or beside the model file. Each is verified against its source before
    it stands under its name, and gone where that fails; onnx-int8, which is calibrated on training images, on the whole
    test set too, so it needs the run and its data. `web` alone is written to the folder `out` itself; where its runtime
    is looked for says `runtime_files`. For `builder` see `load_model`, for the rest `Run.load_data`.

    Raises:
        UserError: an unknown format, no run or one whose model file was edited, a missing extra, a network that the
            format cannot hold, a full disk.
    """
    formats = [to] if isinstance(to, str) else list(dict.fromkeys(to))
    for each in formats:
        if each not in TARGETS:
            raise unknown("format", each, TARGETS)
    path = shipped_file(source)
    if seal_holds(path) is False:  # or else it would leave with a seal that holds
        raise UserError(
            f"{path} was changed after it was sealed, and is not exported: train it again, or restore it", GATE
        )
    source, page = Path(source), runtime_files(runtime) if "web" in formats else {}
    file, targets = load_model(path, builder), _targets(source, formats, out)
    calibrating = _training_images(source, data_dir, progress) if "onnx-int8" in formats else np.empty(0)
    done = []
    for each, target in zip(formats, targets, strict=True):
        proved = partial(_proved, target=target, source=source, builder=builder, data_dir=data_dir)
        if each == "onnx-int8":
            model = to_onnx(file)
            plain, small = export_onnx(file, model), quantised(file, model, calibrating)
            found = proved(small, test_set=True)
            faster = _faster(plain, small, calibrating[:TIMED])
            done.append(Exported(target, each, found, len(plain) / len(small), faster))
        else:
            data = export_pt2(file) if each == "pt2" else export_onnx(file)
            done.append(Exported(target, each, proved(data, test_set=False, page=page if each == "web" else {})))
    return done


def _targets(source: Path, formats: Sequence[str], out: str | Path | None) -> list[Path]:
    if out is None:
        folder = source / "export" if source.is_dir() else source.parent
        return [folder / TARGETS[each] for each in formats]
    if list(formats) == ["web"]:
        return [Path(out).resolve()]  # what is verified first lies beside it
    if Path(out).suffix not in {Path(name).suffix for name in TARGETS.values()} - {""}:
        return [Path(out) / TARGETS[each] for each in formats]
    if len(formats) > 1:
        raise UserError(f"{out} is one file; for {' and '.join(formats)} name a folder")
    ending = Path(TARGETS[formats[0]]).suffix
    if Path(out).suffix != ending:
        raise UserError(f"{out} would hold {formats[0]}: let its name end in {ending}")
    return [Path(out)]


def _training_images(
    source: Path, data_dir: str | Path | None, progress: Callable[[int, int], None] | None
) -> np.ndarray:
    """CALIBRATED training images of the run, evenly spread (a folder is sorted by class), uint8 (N, C, H, W). Raises
    UserError where they are not on this disk."""
    if not source.is_dir():
        raise UserError("onnx-int8 is calibrated on training images, which a model file does not know: give the run")
    try:
        train = Run.open(source).load_data(data_dir, progress).train
    except UserError as error:
        raise UserError(f"onnx-int8 is calibrated on training images, and those are not here: {error}") from error
    return train.at(torch.linspace(0, len(train) - 1, min(CALIBRATED, len(train))).long()).contiguous().numpy()


def _proved(
    data: bytes,
    target: Path,
    source: Path,
    builder: str | None,
    data_dir: str | Path | None,
    test_set: bool,
    page: dict[str, bytes] | None = None,
) -> Verification:
    """Write a file beside its place, verify it, then move it, or into a folder with a page where that one's runtime is
    given. Raises UserError where it fails; then it is gone."""
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            written = Path(folder) / ("model.onnx" if page else target.name)
            write_whole(written, data)
            found = verify(written, source, data_dir=data_dir, builder=builder, test_set=test_set)
            failed = "; ".join(f"{check.name}: {check.said}" for check in found.checks if check.passed is False)
            if failed:
                raise UserError(f"{target} does not say what the network says, and is not kept: {failed}", GATE)
            if page:
                write_web(written, target, page)
            else:
                written.replace(target)
    except OSError as error:
        raise disk_error(error, target) from error
    return replace(found, path=target)


def _faster(plain: bytes, small: bytes, images: np.ndarray) -> float:
    """How many times as fast the second .onnx answers a batch as the first: both in turn, the medians' ratio."""
    sessions = [open_session(data) for data in (plain, small)]
    seconds: list[list[float]] = [[], []]
    for i in range(REPEATS + 1):
        for session, taken in zip(sessions, seconds, strict=True):
            start = time.perf_counter()
            session.run(["logits"], {"images": images})
            if i:  # the first one is slower
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])
