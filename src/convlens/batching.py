"""Requests that arrive together are computed as one batch, by one thread: bounded wait, bounded batch, bounded queue.

    batcher = Batcher(compute, max_batch=32)
    rows = await batcher.run(["a", "b"])      # compute(["a", "b", and what others asked meanwhile])[:2]

A request that comes alone is computed at once. Where the batch before had several, others are on their way, for their
clients have just been answered: then the thread waits until as many are there again, `max_wait` at most.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

THREAD = "inference"  # the name of a thread that computes

Item = TypeVar("Item")
Row = TypeVar("Row")


class Full(Exception):  # noqa: N818 - a state, which the caller answers, and no mistake
    """The queue has no room for so many more."""


class Closed(Exception):  # noqa: N818 - likewise
    """The batcher takes nothing any more."""


class Failed(Exception):  # noqa: N818 - likewise
    """`compute` raised something (the cause) for the batch that an item was in."""


@dataclass(eq=False)
class _Job(Generic[Item, Row]):
    """What one caller asked for: its items, the rows that are there already, and whom to tell."""

    items: Sequence[Item]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Row]]
    rows: list[Row] = field(default_factory=list)
    largest: int = 0  # batch that an item of it was computed in
    error: BaseException | None = None


class Batcher(Generic[Item, Row]):
    """`compute` takes 1 to `max_batch` items and gives a row for each, in order; it is only ever called by one thread.

    At most `max_queue` items wait. Until as many wait as the last batch had, `max_wait` seconds are waited: those that
    were answered together tend to come again together. `observe(size, seconds)` is told of each batch, `queued(count)`
    of how many wait whenever that changes.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Row]],
        max_batch: int = 32,
        max_wait: float = 0.0,
        max_queue: int = 512,
        observe: Callable[[int, float], None] | None = None,
        queued: Callable[[int], None] | None = None,
    ) -> None:
        self.compute, self.observe, self.queued = compute, observe, queued
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self._waiting: deque[tuple[_Job[Item, Row], Item]] = deque()
        self._changed = threading.Condition()
        self._closed, self._last = False, 0
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    async def run(self, items: Sequence[Item]) -> tuple[list[Row], int]:
        """The rows of `items`, and the size of the largest batch that one of them was in. A caller that is cancelled
        takes those that still wait with it.

        Raises:
            Full: there is no room for them.
            Closed: after `close`.
            Failed: `compute` raised an exception for a batch that one of them was in.
        """
        if not items:
            return [], 0
        loop = asyncio.get_running_loop()
        job = _Job[Item, Row](items, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) + len(items) > self.max_queue:
                raise Full
            self._waiting.extend((job, item) for item in items)
            self._say()
            self._changed.notify()
        try:
            return await job.done, job.largest
        except asyncio.CancelledError:
            with self._changed:  # nor do its items take up room and memory until their turn
                self._waiting = deque(entry for entry in self._waiting if entry[0] is not job)
                self._say()
            raise

    def _say(self) -> None:
        if self.queued:
            self.queued(len(self._waiting))

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more, compute what waits, and end the thread; whether it ended within `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._take():
            began = time.perf_counter()
            try:
                rows = list(self.compute([item for _, item in batch]))
                if len(rows) != len(batch):
                    raise RuntimeError(f"{len(batch)} items were computed to {len(rows)} rows")
                if self.observe:
                    self.observe(len(batch), time.perf_counter() - began)
            except BaseException as error:  # whatever it is, the next batch has nothing to do with it
                for job, _ in batch:
                    job.error = error
            else:
                for (job, _), row in zip(batch, rows, strict=True):
                    job.rows.append(row)
                    job.largest = max(job.largest, len(batch))
            _tell({job for job, _ in batch if job.error or len(job.rows) == len(job.items)})

    def _take(self) -> list[tuple[_Job[Item, Row], Item]]:
        """The next batch; empty where there is none and will be none."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self.max_wait:
                    self._changed.wait_for(lambda: len(self._waiting) >= self._last or self._closed, self.max_wait)
                batch: list[tuple[_Job[Item, Row], Item]] = []
                while self._waiting and len(batch) < self.max_batch:
                    job, item = self._waiting.popleft()
                    if not job.done.cancelled() and not job.error:
                        batch.append((job, item))
                self._say()
                if batch or (self._closed and not self._waiting):
                    self._last = len(batch)
                    return batch


def _tell(jobs: set[_Job[Any, Any]]) -> None:
    """Wake the callers, those of one event loop with one call: each is a system call and a switch of threads."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job[Any, Any]]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, its in by_loop.items():
        try:
            loop.call_soon_threadsafe(_finish, its)
        except RuntimeError:  # the loop is closed: nobody waits there any more
            continue


def _finish(jobs: Sequence[_Job[Any, Any]]) -> None:
    for job in jobs:
        if job.done.done():  # its caller was cancelled
            continue
        if job.error:
            failed = Failed(f"{type(job.error).__name__}: {job.error}")
            failed.__cause__ = job.error
            job.done.set_exception(failed)
        else:
            job.done.set_result(job.rows)
