"""What a server counts, for Prometheus: requests by route and status, their seconds, batches, the queue, images."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where several workers keep their counts; prometheus_client looks for it
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Meters:
    """In a registry of their own. Where several workers serve, each shows the sums of all."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "convlens_requests", "Requests answered, by route and status.", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "convlens_request_seconds",
            "From a request's headers to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=own,
        )
        self.images = Counter("convlens_images", "Pictures, by what became of them.", ["outcome"], registry=own)
        self.batches = Histogram("convlens_batch_size", "Pictures that one batch had.", buckets=SIZES, registry=own)
        self.computing = Histogram(
            "convlens_batch_seconds", "Time that the network took for a batch.", buckets=SECONDS, registry=own
        )
        self.queue = Gauge(
            "convlens_queue_depth", "Pictures that wait for a batch.", registry=own, multiprocess_mode="livesum"
        )
        self._of = {}  # type: ignore[var-annotated] # the children by their labels: looking one up takes a lock
        if FOLDER in os.environ:
            _forget_the_dead(Path(os.environ[FOLDER]))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        found = self._of.get((route, status))
        if found is None:
            found = self._of[route, status] = self.requests.labels(route, status), self.seconds.labels(route)
        found[0].inc()
        found[1].observe(seconds)

    def pictures(self, answered: int, refused: int) -> None:
        """Count the pictures of a request."""
        self.images.labels("answered").inc(answered)
        self.images.labels("refused").inc(refused)

    def computed(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.observe(size)
        self.computing.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)


def _forget_the_dead(folder: Path) -> None:
    """A worker that died leaves its part of the sum of what is there now."""
    for path in folder.glob("gauge_live*_*.db"):
        number = int(path.stem.rsplit("_", 1)[1])
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            with contextlib.suppress(OSError):
                mark_process_dead(number, str(folder))
