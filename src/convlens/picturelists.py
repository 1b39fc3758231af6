"""Lists of a run's images: by class, by what they were taken for and how surely; those that two runs answer
differently; the mistakes that a network in training makes now; the nearest training images of a picture."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from .channels import sample
from .comparing import compare
from .data import Data
from .embedding import embed, features_of, nearest
from .errors import UserError, unknown
from .evaluation import logits_of
from .exhibit import Exhibit
from .operating import probabilities_of
from .snapshots import Snapshot
from .walking import number

PAGE = 60  # images of one page
LOOKED = 1000  # images among which the mistakes of the moment are looked for
KNOWN = 10_000, 10_000 * 32 * 32  # training images among which neighbours are looked for, and their pixels
Found = TypeVar("Found")
PART = 100  # images that are computed between two looks whether the program ends
WAITED = 2.0  # seconds that an answer waits for what is computed in the background
DISPUTED = ("first", "second", "neither", "both")  # who of two runs is right


def images(
    exhibit: Exhibit,
    split: str = "test",
    label: str = "",
    predicted: str = "",
    sort: str = "index",
    wrong: bool = False,
    page: int = 0,
) -> dict[str, Any]:
    """A page of a split's images: of a class, taken for a class, wrong ones only; by place, or by how sure it was.
    Pictures of one's own have their `file`, too.

    Raises:
        UserError: an unknown split, class or order; or what the network said is asked of images it was not asked.
    """
    if sort not in ("index", "sure", "unsure"):
        raise unknown("order", sort, ("index", "sure", "unsure"))
    found = exhibit.outcomes if split == "test" and exhibit.run.finished else None
    if found is None and (predicted or wrong or sort != "index"):
        raise UserError(
            f"what the network says is written down of a finished run's test images, not of the {split} ones"
        )
    labels = exhibit.split(split).labels.cpu().numpy() if found is None else found.labels
    kept = np.ones(len(labels), dtype=bool)
    if label:
        kept &= labels == exhibit.class_number(label)
    if found and predicted:
        kept &= found.predicted == exhibit.class_number(predicted)
    if found and wrong:
        kept &= ~found.right
    places = np.flatnonzero(kept)
    if found and sort != "index":
        sure = found.confidence[places]
        places = places[np.argsort(sure if sort == "unsure" else -sure, kind="stable")]
    shown = places[max(page, 0) * PAGE :][:PAGE]
    said = [(None, None)] * len(shown)
    if found:
        said = list(zip(found.predicted[shown].tolist(), found.confidence[shown].tolist(), strict=True))
    rows = _rows(split, shown.tolist(), labels[shown].tolist(), said)
    if exhibit.seen.get("folder"):  # pictures of one's own have names
        for row, place in zip(rows, shown.tolist(), strict=True):
            row["file"] = found.names[place] if found else _file(exhibit.data(), split, place)
    return {"total": len(places), "images": rows}


def _file(data: Data, split: str, place: int) -> str:
    return data.files[int(getattr(data, split).index[place])]


def confusion(exhibit: Exhibit) -> dict[str, Any]:
    """How often test images of a class (row) were taken for a class (column). Raises UserError before the end."""
    return {"classes": [*exhibit.classes], "counts": exhibit.run.metrics["test"]["confusion"]}


def compared(first: Exhibit, second: Exhibit, kind: str = "", page: int = 0) -> dict[str, Any]:
    """What differs between two runs, how they did, and McNemar's test; with a `kind` of DISPUTED also a page of the
    test images that only the first, the second, neither or both get right, the surest of the first run first.

    Raises:
        UserError: an unknown kind, or images asked of runs that did not answer the same ones.
    """
    told = compare([first.run, second.run], first.builder).to_dict()
    if not kind:
        return told
    if kind not in DISPUTED:
        raise unknown("kind", kind, DISPUTED)
    if not told["tests"]:
        raise UserError("these two runs did not answer the same test images: there is nothing to dispute")
    ours, theirs = first.outcomes, second.outcomes
    right = {"first": (True, False), "second": (False, True), "neither": (False, False), "both": (True, True)}[kind]
    places = np.flatnonzero((ours.right == right[0]) & (theirs.right == right[1]))
    places = places[np.argsort(-ours.confidence[places], kind="stable")]
    shown = places[max(page, 0) * PAGE :][:PAGE]
    said = list(zip(ours.predicted[shown].tolist(), ours.confidence[shown].tolist(), strict=True))
    rows = _rows("test", shown.tolist(), ours.labels[shown].tolist(), said)
    others = zip(theirs.predicted[shown].tolist(), theirs.confidence[shown].tolist(), strict=True)
    for row, (best, sure) in zip(rows, others, strict=True):
        row["other"] = {"predicted": best, "probability": number(sure)}
    return {**told, "total": len(places), "images": rows}


class Later(Generic[Found]):
    """Something that takes long and is computed in a thread, anew for every stamp of a network, one at a time. Whoever
    computes goes by parts and asks `stay` between them: a thread inside torch at the program's end would abort it."""

    def __init__(self) -> None:
        self._leaving = threading.Event()
        atexit.register(self.leave)
        self._stamp, self._found, self._failed = "", cast(Found | None, None), cast(Exception | None, None)
        self._lock, self.thread = threading.Lock(), threading.Thread()

    def ask(self, stamp: str, compute: Callable[[], Found]) -> tuple[Found | None, bool]:
        """The last that was computed, if any, and whether it is that of `stamp`; if not, it is on its way, and was
        waited for a little. Raises what `compute` raised for it."""
        until = time.monotonic() + WAITED
        while True:
            found, current = self._now(stamp, compute)
            if current or time.monotonic() >= until:
                return found, current
            self.thread.join(until - time.monotonic())

    def _now(self, stamp: str, compute: Callable[[], Found]) -> tuple[Found | None, bool]:
        with self._lock:
            if self._stamp == stamp and self._failed:
                raise self._failed
            if self._stamp != stamp and not self.thread.is_alive():
                self.thread = threading.Thread(target=self._compute, args=(stamp, compute), daemon=True)
                self.thread.start()
            return self._found, self._stamp == stamp

    def leave(self) -> None:
        """End the thread, as soon as it asks."""
        self._leaving.set()
        if self.thread.is_alive():
            self.thread.join()

    def stay(self) -> None:
        """Raises UserError where the program ends."""
        if self._leaving.is_set():
            raise UserError("the server is shutting down")

    def _compute(self, stamp: str, compute: Callable[[], Found]) -> None:
        found, failed = None, None
        try:
            found = compute()
        except Exception as error:  # told to who asks
            failed = error
        with self._lock:
            self._stamp, self._found, self._failed = stamp, found, failed


class Glance:
    """What a network gets wrong, also while it is trained, among at most LOOKED images that it does not train on (or,
    where nothing is held out, that it does), evenly spread; looked at once for every time that it was saved."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit, self.later = exhibit, Later[dict[str, Any]]()

    def mistakes(self, epoch: int | None = None) -> dict[str, Any]:
        """The surest mistakes first, a page of them, of the network that was looked at last; `pending` while a newer
        one is. Raises UserError before the first epoch, and where the data is not there."""
        network = self.exhibit.network(epoch)
        found, current = self.later.ask(network.stamp, lambda: self._look(network))
        return {"pending": not current, "images": [], **(found or {})}

    def _look(self, network: Snapshot) -> dict[str, Any]:
        name = "val" if self.exhibit.seen["images"].get("val") else "train"
        split = self.exhibit.split(name)
        places = sample(split, LOOKED)
        model, parts = self.exhibit.copied(network), []
        for part in places.split(PART):
            self.later.stay()
            parts.append(logits_of(model, split.take(part)).numpy())
        probabilities = probabilities_of(np.concatenate(parts), network.manifest.calibration.temperature)
        labels, best = split.labels[places].numpy(), probabilities.argmax(1)
        sure = probabilities[np.arange(len(best)), best]
        wrong = np.flatnonzero(labels != best)
        shown = wrong[np.argsort(-sure[wrong], kind="stable")][:PAGE]
        said = list(zip(best[shown].tolist(), sure[shown].tolist(), strict=True))
        rows = _rows(name, places[shown].tolist(), labels[shown].tolist(), said)
        return {"split": name, "looked": len(places), "wrong": len(wrong), "images": rows}


class Neighbourhood:
    """The training images nearest to any picture, by what the last layer is given; of at most KNOWN of them, evenly
    spread. Their features are computed once."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit, self.later = exhibit, Later[tuple[Tensor, Tensor]]()

    def near(self, ref: str, count: int = 8) -> dict[str, Any]:
        """The nearest ones, or `pending` while they are looked at. Raises UserError where the run is not finished, its
        data is not there, or the network has no such layer."""
        network, image = self.exhibit.network(), self.exhibit.image(ref)[0]
        _ = self.exhibit.run.metrics
        found, current = self.later.ask(network.stamp, lambda: self._features(network))
        if found is None or not current:
            return {"pending": True, "images": []}
        places, features = found
        with self.exhibit.asking:
            asked = embed(network.model, image[None])[0]
        neighbours = nearest(asked, features, count + 1)
        labels, rows = self.exhibit.split("train").labels, []
        for at, distance in zip(places[neighbours.places[0]].tolist(), neighbours.distances[0].tolist(), strict=True):
            if ref != f"train:{at}":
                rows.append({"ref": f"train:{at}", "label": int(labels[at]), "distance": number(distance)})
        return {"pending": False, "images": rows[:count], "among": len(places)}

    def _features(self, network: Snapshot) -> tuple[Tensor, Tensor]:
        train = self.exhibit.split("train")
        places = sample(train, min(KNOWN[0], max(KNOWN[1] // train.store[0, 0].numel(), 200)))
        model, parts = self.exhibit.copied(network), []
        for part in places.split(PART):
            self.later.stay()
            parts.append(features_of(model, train, part)[0])
        return places, torch.cat(parts)


def _rows(
    split: str, places: Iterable[int], labels: Iterable[int], said: Iterable[tuple[int | None, float | None]]
) -> list[dict[str, Any]]:
    return [
        {
            "ref": f"{split}:{place}",
            "label": label,
            "predicted": best,
            "probability": None if sure is None else number(sure),
        }
        for place, label, (best, sure) in zip(places, labels, said, strict=True)
    ]
