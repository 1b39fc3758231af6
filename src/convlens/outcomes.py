"""What a finished run said to its test set, read back from the run's own predictions.csv: which image was taken for
what, and how surely. It needs neither the images nor the network."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import FAILED, UserError


@dataclass(frozen=True)
class Outcomes:
    """`names` (N): files, or test:7 as `convlens explain` takes it. `labels` and `predicted` int (N,); `probabilities`
    float (N, K), calibrated, to nine digits."""

    names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """(N,): the probability of the class that was predicted."""
        return self.probabilities[np.arange(len(self.labels)), self.predicted]

    @property
    def right(self) -> np.ndarray:
        return self.labels == self.predicted

    def before(self, temperature: float) -> np.ndarray:
        """(N,): the confidence before calibration. softmax(z) is proportional to softmax(z / T) to the power of T."""
        raw = self.probabilities**temperature
        return raw[np.arange(len(raw)), self.predicted] / raw.sum(1)

    def cell(self, truth: int, predicted: int) -> np.ndarray:
        """The places of one cell of the confusion matrix: of mistakes the surest first, of right ones the least
        sure."""
        places = np.flatnonzero((self.labels == truth) & (self.predicted == predicted))
        order = np.argsort(self.confidence[places], kind="stable")
        return places[order if truth == predicted else order[::-1]]

    def worst(self, count: int) -> np.ndarray:
        """The places of the surest mistakes."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]

    def surest(self, count: int) -> np.ndarray:
        """The places of the surest right answers, the classes in turn."""
        right = np.flatnonzero(self.right)
        right = right[np.argsort(-self.confidence[right], kind="stable")]
        rank = np.zeros(len(right), dtype=int)  # how many of its own class are surer
        for label in np.unique(self.labels[right]):
            members = self.labels[right] == label
            rank[members] = np.arange(members.sum())
        return right[np.lexsort((self.labels[right], rank))][:count]


def read_outcomes(path: Path, classes: Sequence[str]) -> Outcomes:
    """Raises UserError where `path` is missing or is not what a run over `classes` writes."""
    number = {name: i for i, name in enumerate(classes)}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(file)
            of_files = next(rows)[0] == "file"
            listed = [
                (row[0], number[row[1]], number[row[2]], np.array(row[4:], dtype=np.float64))  # as text: many times it
                for row in rows
            ]
        probabilities = np.array([row[3] for row in listed])
        if probabilities.shape != (len(listed), len(classes)):
            raise ValueError(f"it has not {len(classes)} probabilities a line")
    except (OSError, ValueError, KeyError, IndexError, StopIteration, csv.Error) as error:
        raise UserError(f"{path} is missing or damaged: {error}", FAILED) from error
    names = tuple(row[0] if of_files else f"test:{place}" for place, row in enumerate(listed))
    labels, predicted = (np.array([row[i] for row in listed]) for i in (1, 2))
    return Outcomes(names, labels, predicted, probabilities)
