"""A training that is told to stop at a given step."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from convlens.training import Position


def stop_after(stop: threading.Event, count: int) -> Any:
    """A watch that sets `stop` while the step with this number, counted from 1, is under way."""
    done = itertools.count(1)

    def watch(todo: Iterable[tuple[Tensor, Tensor]], _at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in todo:
            if next(done) == count:
                stop.set()
            yield batch

    return watch
