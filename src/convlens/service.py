"""What a server does with pictures: bytes to pixels in a few threads, pixels to rows in batches, and why, as a picture.

The numbers are `Predictor.answers`' own; nothing here knows of HTTP.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .batching import Batcher, Failed, Full
from .errors import UserError
from .guard import Limits
from .images import MAX_PIXELS, preprocess
from .meters import Meters
from .predict import UNKNOWN, Prediction, Predictor
from .replaying import golden_checks

if TYPE_CHECKING:  # an .onnx is served without torch
    from .modelfile import ModelFile

DECODERS = 2  # threads for pictures that are not tiny, and bodies that are large
TINY_BYTES, TINY_PIXELS = 4096, 16_384  # a PNG up to both is decoded in less time than a thread takes to be woken
EXPLAINING = 8  # explanations that wait; one at a time is drawn, half a second each
CLOSING = 5.0  # seconds that what is still computed is waited for at the end, when nobody waits for it any more

Item = tuple[np.ndarray, int]  # pixels uint8 (C, H, W), and how many classes are asked for
Asked = tuple[bytes, str, str | None, str | None, str | None]  # a picture, method, class, against, layer


class MissingError(UserError):
    """What an explanation needs is not installed."""


class Service:
    """A predictor behind a batcher. `file` is the network in PyTorch, where it can be explained."""

    def __init__(self, predictor: Predictor, limits: Limits, meters: Meters, file: ModelFile | None = None) -> None:
        self.predictor, self.limits, self.meters, self.file = predictor, limits, meters, file
        self.unready = disagreement(predictor)  # why nothing is answered
        self.pool = Pool(DECODERS, limits.queue)
        self._batcher: Batcher[Item, Prediction] | None = None
        self._explainer: Batcher[Asked, bytes] | None = None

    def start(self) -> None:
        """Start the threads that compute; where there are explanations, with what draws them loaded."""
        limits, meters = self.limits, self.meters
        self._batcher = Batcher(
            self._compute, limits.batch, limits.wait, limits.queue, meters.computed, meters.queue.set
        )
        if self.file:
            _load_the_drawers()
            self._explainer = Batcher(lambda asked: [self._drawn(*asked[0])], max_batch=1, max_queue=EXPLAINING)

    def stop(self) -> None:
        """Compute what waits, for some seconds, and end the threads."""
        for batcher in (self._batcher, self._explainer):
            if batcher:
                batcher.close(CLOSING)
        self.pool.close()

    def waiting(self) -> int:
        """Pictures that wait for a batch."""
        return len(self._batcher) if self._batcher else 0

    async def predict(
        self, pictures: Sequence[tuple[str, bytes]], top: int = 1, threshold: float = 0.0
    ) -> tuple[list[Prediction], int]:
        """A row for each of the (name, bytes), and the size of the batch that they were in. A picture that cannot be
        read is a row with its reason.

        Raises:
            Full: too many wait already.
            Failed: the network raised an exception.
        """
        assert self._batcher is not None  # noqa: S101 - start() was called
        alone = self._at_once(pictures[0][1]) if len(pictures) == 1 else None
        pixels = [alone] if alone is not None else await self._pixels([data for _, data in pictures])
        readable = [p for p in pixels if isinstance(p, np.ndarray)]
        rows, batch = await self._batcher.run([(p, top) for p in readable])
        answers = iter(rows)
        told = [
            Prediction(name, error=p) if isinstance(p, str) else _row(name, next(answers), top, threshold)
            for (name, _), p in zip(pictures, pixels, strict=True)
        ]
        return told, batch

    def _compute(self, items: Sequence[Item]) -> list[Prediction]:
        return list(self.predictor.answers(np.stack([pixels for pixels, _ in items]), max(top for _, top in items)))

    def _at_once(self, data: bytes) -> np.ndarray | None:
        """The pixels of a tiny picture; None of another, and of one that is refused, which may only be no tiny one."""
        if len(data) > TINY_BYTES or not data.startswith(b"\x89PNG\r\n\x1a\n"):
            return None
        pixels = self._decode(data, TINY_PIXELS)  # what the decoder takes for its size, not what a header says first
        return None if isinstance(pixels, str) else pixels

    async def _pixels(self, pictures: Sequence[bytes]) -> list[np.ndarray | str]:
        return await asyncio.gather(*map(asyncio.wrap_future, self.pool.submit(self._decode, pictures)))

    def _decode(self, data: bytes, most: int = MAX_PIXELS) -> np.ndarray | str:
        """uint8 (C, H, W), or why there is none."""
        try:
            return preprocess(data, self.predictor.manifest.input, min(self.limits.pixels, most))
        except UserError as error:
            return str(error)

    async def explain(
        self, data: bytes, method: str, target: str | None, against: str | None, layer: str | None
    ) -> bytes:
        """A PNG of what speaks for a class in a picture.

        Raises:
            Full: too many explanations wait already.
            MissingError: captum is not installed.
            UserError: the picture cannot be read, or there is no such method, class or layer.
        """
        assert self._explainer is not None  # noqa: S101 - the route looked, and start() was called
        try:
            (png,), _ = await self._explainer.run([(data, method, target, against, layer)])
        except Failed as failed:
            raise failed.__cause__ or failed from None
        return png

    def _drawn(self, data: bytes, method: str, target: str | None, against: str | None, layer: str | None) -> bytes:
        import torch

        from .attribution import attribute, require_captum
        from .overlays import attributions
        from .plots import rendered

        assert self.file is not None  # noqa: S101 - the route looked
        try:
            require_captum()
        except UserError as error:
            raise MissingError(str(error)) from error
        pixels = self._decode(data)
        if isinstance(pixels, str):
            raise UserError(pixels)
        image, manifest = torch.from_numpy(pixels), self.file.manifest
        found = attribute(
            self.file.model,
            image[None],
            method,
            target,
            against,
            classes=manifest.classes,
            layer=layer,
            temperature=manifest.calibration.temperature,
        )
        return rendered(attributions(image, found, manifest.classes))


class Pool:
    """Threads that do one thing to each of some bytes. `most` are under way at once, and a thing counts until a thread
    is done with it, whether somebody still waits for it or not."""

    def __init__(self, threads: int, most: int) -> None:
        self.most, self.taken = most, 0
        self._changing = threading.Lock()
        self._threads = ThreadPoolExecutor(threads, "decode")

    def submit(self, work: Callable[[bytes], Any], things: Sequence[bytes]) -> list[Future[Any]]:
        """Raises Full where there is no room for all of them."""
        with self._changing:
            if self.taken + len(things) > self.most:
                raise Full
            self.taken += len(things)
        return [self._submit(work, [thing]) for thing in things]

    def _submit(self, work: Callable[[bytes], Any], box: list[bytes]) -> Future[Any]:
        """The thing is in a box: one that is cancelled stays in the executor's queue until its turn, but empty."""

        def done(_: Future[Any]) -> None:
            box.clear()
            with self._changing:
                self.taken -= 1

        future = self._threads.submit(lambda: work(box.pop()))
        future.add_done_callback(done)
        return future

    def close(self) -> None:
        """Take nothing more; who waits for a thing that no thread has begun is told so by its cancellation."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def disagreement(predictor: Predictor) -> str:
    """Hold what a network says to what it said when it was saved; what is wrong, empty where it agrees."""
    failed = [check.said for check in golden_checks(predictor.shipped) if check.passed is False]
    said = "the model does not give its own golden logits: it is damaged or was changed"
    return f"{said} ({'; '.join(failed)})" if failed else ""


def _load_the_drawers() -> None:
    """Import what the first explanation would be kept waiting for."""
    from . import overlays  # noqa: F401
    from .attribution import require_captum

    with suppress(UserError):  # it is not installed, which who asks is told
        require_captum()


def _row(name: str, answer: Prediction, top: int, threshold: float) -> Prediction:
    """`answer` as it was asked for: it was computed for the largest `top` of its batch."""
    if not math.isfinite(answer.energy or 0) or answer.probability is None:
        return Prediction(name, error="the network's answer to the picture is not finite")
    label = answer.label if answer.probability >= threshold else UNKNOWN
    return replace(answer, file=name, label=label, top=answer.top[:top])
