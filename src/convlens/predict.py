"""Predictor: pictures in, labels and calibrated probabilities out, with the preprocessing that the model file carries.

Everything here is a stream: any number of files can be named, read, classified and written, and memory holds a few
batches of them.
"""

from __future__ import annotations

import json
import math
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from os import scandir
from pathlib import Path

import numpy as np

from .errors import UserError
from .files import csv_text
from .formats import Shipped, open_shipped
from .images import PICTURES, UNREAD, preprocess
from .operating import energy, probabilities_of

UNKNOWN = "unknown"  # the label of a picture whose probability is below the threshold
DECODERS = 4  # threads; Pillow lets the others run while it decodes


@dataclass(frozen=True)
class Prediction:
    """Of one file. `top` are (class, probability) pairs, likeliest first, and `probability` is the first one's; `label`
    is its class, or "unknown" where the probability is below the threshold asked for. `unusual` where `energy`
    is above that of 95 % of the validation images or below that of 99 %, None where the model file does not know. Where
    `error` says what is wrong with the file, the rest is empty."""

    file: str
    label: str = ""
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    energy: float | None = None
    unusual: bool | None = None
    error: str = ""


Decoded = tuple[str, np.ndarray | None, str]  # a file's name, its pixels, and why there are none


class Predictor:
    """A network that left and the call that uses it; the same rows whichever format and way pictures come in."""

    def __init__(self, shipped: Shipped) -> None:
        self.shipped, self.manifest = shipped, shipped.manifest

    @classmethod
    def load(cls, path: str | Path, builder: str | None = None) -> Predictor:
        """From a file of any format that ConvLens writes, or from a run folder; see `open_shipped`."""
        return cls(open_shipped(path, builder))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, C, H, W) -> what the network says, float32 (N, classes); the temperature is not in it."""
        return self.shipped.logits(images)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, C, H, W) -> calibrated probabilities, float64 (N, classes): softmax(logits / temperature), the
        temperature being the one fitted on the validation split (`manifest.calibration`; 1 where there was none)."""
        return probabilities_of(self.logits(images), self.manifest.calibration.temperature)

    def predict(
        self, paths: Iterable[str | Path], top: int = 1, batch_size: int = 64, threshold: float = 0.0
    ) -> Iterator[Prediction]:
        """A Prediction a file, in order, as a stream: paths are asked for about two batches ahead, and decoded in
        threads while the network computes. A file that cannot be read becomes a row with its reason.

        `threshold`, 0 to 1: the label is "unknown" where the top probability is below it. The one whose answers were
        99 % right on validation is known to `manifest.calibration.reaching(0.99)`.

        Raises:
            UserError: a threshold out of range, or a top or batch_size below 1.
        """
        _require_positive(top=top, batch_size=batch_size)
        if not 0 <= threshold <= 1:
            raise UserError(f"the threshold is a probability from 0 to 1, not {threshold:g}")
        return self._predict(paths, top, batch_size, threshold)

    def _predict(
        self, paths: Iterable[str | Path], top: int, batch_size: int, threshold: float
    ) -> Iterator[Prediction]:
        waiting: list[Decoded] = []
        for decoded in self._decoded(paths, 2 * batch_size):
            waiting.append(decoded)
            if len(waiting) == batch_size:
                yield from self._rows(waiting, top, threshold)
                waiting = []
        yield from self._rows(waiting, top, threshold)

    def _decoded(self, paths: Iterable[str | Path], ahead: int) -> Iterator[Decoded]:
        """What `_decode` makes of each path, in order; at most `ahead` of them are under way or wait to be fetched."""
        under_way: deque[Future[Decoded]] = deque()
        pool = ThreadPoolExecutor(DECODERS, "decode")
        try:
            for path in paths:
                under_way.append(pool.submit(self._decode, path))
                if len(under_way) == ahead:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:  # also where nobody asks for the rest
            pool.shutdown(cancel_futures=True)

    def _decode(self, path: str | Path) -> Decoded:
        try:
            return str(path), preprocess(path, self.manifest.input), ""
        except UserError as error:
            return str(path), None, str(error)

    def _rows(self, waiting: Sequence[Decoded], top: int, threshold: float) -> Iterator[Prediction]:
        readable = [pixels for _, pixels, _ in waiting if pixels is not None]
        if readable:
            answers = iter(self.answers(np.stack(readable), top, threshold))
        for name, pixels, error in waiting:
            if pixels is None:
                yield Prediction(name, error=error)
                continue
            answer = next(answers)
            sound = math.isfinite(answer.energy or 0)
            yield (
                replace(answer, file=name)
                if sound
                else Prediction(name, error=f"the network's answer to {name} is not finite")
            )

    def answers(self, images: np.ndarray, top: int = 1, threshold: float = 0.0) -> Iterator[Prediction]:
        """uint8 (N, C, H, W) -> a Prediction an image, without a file's name. Raises UserError for a `top` below 1."""
        _require_positive(top=top)
        classes, calibration = self.manifest.classes, self.manifest.calibration
        logits = self.logits(images)
        probabilities = probabilities_of(logits, calibration.temperature)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for row, best, energy_ in zip(probabilities, order, energy(logits, calibration.temperature), strict=True):
            pairs = tuple((classes[i], float(row[i])) for i in best)
            label, probability = pairs[0]
            yield Prediction(
                "",
                label if probability >= threshold else UNKNOWN,
                probability,
                pairs,
                float(energy_),
                calibration.unusual(float(energy_)),
            )


def _require_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} is at least 1, not {count}")


def to_csv(predictions: Iterable[Prediction], pairs: int = 0) -> Iterator[str]:
    """CSV, a line at a time: file, label, probability, the first `pairs` of `top` as label_1, probability_1, ..., then
    energy, unusual (1 or 0) and error."""
    names = [name for rank in range(1, pairs + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    yield csv_text([["file", "label", "probability", *names, "energy", "unusual", "error"]])
    for row in predictions:
        cells = [cell for label, p in row.top[:pairs] for cell in (label, f"{p:.6f}")] or [""] * len(names)
        numbers = ["" if value is None else f"{value:.6f}" for value in (row.probability, row.energy)]
        unusual = "" if row.unusual is None else int(row.unusual)
        yield csv_text([[row.file, row.label, numbers[0], *cells, numbers[1], unusual, row.error]])


def to_json(predictions: Iterable[Prediction]) -> Iterator[str]:
    """A JSON array, an object a line, with the fields of Prediction."""
    before = "[\n"
    for row in predictions:
        yield before + json.dumps(asdict(row), ensure_ascii=False, allow_nan=False)
        before = ",\n"
    yield "\n]\n" if before == ",\n" else "[]\n"


def pictures_in(paths: Iterable[str | Path], passed_over: Counter[str] | None = None) -> Iterator[Path]:
    """Files as they are; of folders every picture below them, hidden ones passed over, as a stream: a folder's names
    are sorted, and only of folders that are not done are names kept. Links are followed, but each folder is entered
    once. `passed_over` counts, by ending, the pictures of a kind that cannot be read, and folders that cannot.

    Raises:
        UserError: a path that does not exist.
    """
    given = [Path(path) for path in paths]
    missing = next((path for path in given if not _mode(path)), None)
    if missing:  # said before hours have gone into the others
        raise UserError(f"there is no file or folder {missing}")
    for path in given:
        if stat.S_ISDIR(_mode(path)):
            yield from _below(path, Counter() if passed_over is None else passed_over)
        else:
            yield path


def _below(folder: Path, passed_over: Counter[str]) -> Iterator[Path]:
    entered: set[tuple[int, int]] = set()
    ahead = [(str(folder), True)]  # a stack: path, and whether it is a folder
    while ahead:
        path, is_folder = ahead.pop()
        if not is_folder:
            yield Path(path)
            continue
        try:
            found = Path(path).stat()
            if (found.st_dev, found.st_ino) not in entered:
                entered.add((found.st_dev, found.st_ino))
                ahead += sorted(_entries(path, passed_over), reverse=True)
        except OSError:
            passed_over["folder that cannot be read"] += 1


def _entries(folder: str, passed_over: Counter[str]) -> Iterator[tuple[str, bool]]:
    """The folders and pictures in a folder; a link that leads nowhere goes by its name, to become a row."""
    with scandir(folder) as entries:
        for entry in entries:
            mode, ending = _mode(Path(entry.path)), Path(entry.name).suffix.lower()
            if entry.name.startswith("."):
                continue
            if stat.S_ISDIR(mode):
                yield entry.path, True
            elif ending in PICTURES and (stat.S_ISREG(mode) or not mode):
                yield entry.path, False
            elif ending in UNREAD:
                passed_over[ending] += 1


def _mode(path: Path) -> int:
    """st_mode, links followed; 0 where there is none: no such file, a circle of links, a name that is too long."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0
