"""A training step as a CUDA graph: recorded once, then started as one, without Python and without gaps between its
kernels. A small network's step is mostly the time that it takes to start them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import FAILED, UserError

EAGER = 3  # steps of a shape before it is recorded: in them kernels are chosen, code compiled and buffers made
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor]

    def play(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for place, given in zip(self.inputs, (images, labels), strict=True):
            place.copy_(given)
        self.graph.replay()
        return self.outputs


def recorded(step: Step, device: torch.device) -> Step:
    """`step`, a function of images and labels on the GPU `device` that works in place and gives (loss, right answers),
    such that from the fourth batch of a shape on it is played back. What it gives is overwritten by the next call.

    Only what the GPU does is played back: everything in Python happens while recording, and never again.

    Raises:
        UserError: the step waits for the GPU, and so cannot be recorded.
    """
    stream, pool, met = torch.cuda.Stream(device), torch.cuda.graph_pool_handle(), Counter[torch.Size]()
    recordings: dict[torch.Size, _Recording] = {}

    def run(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        shape = images.shape
        met[shape] += 1
        with torch.cuda.device(device):
            if met[shape] == EAGER + 1:
                recordings[shape] = _record(step, images, labels, stream, pool)
            if shape in recordings:
                return recordings[shape].play(images, labels)
            # On the stream that will record, because autograd's nodes remember where they were made
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found = step(images, labels)
            torch.cuda.current_stream().wait_stream(stream)
            return found

    return run


def _record(step: Step, images: Tensor, labels: Tensor, stream: torch.cuda.Stream, pool: Any) -> _Recording:
    inputs, graph = (images.clone(), labels.clone()), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            outputs = step(*inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        what = str(error).splitlines()[0]  # the rest is CUDA's advice on how to debug its kernels
        raise UserError(
            f"a training step of this model cannot be recorded as a CUDA graph ({what}): --set cuda_graph=off", FAILED
        ) from error
    return _Recording(graph, inputs, outputs)
