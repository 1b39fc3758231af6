"""A training step as a CUDA graph: recorded once, then started as one, without Python and without gaps between its
kernels. A small network's step is mostly the time that it takes to start them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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


def recorded(step: Step) -> Step:
    """`step`, a function of images and labels on a GPU that works in place and gives (loss, right answers), such that
    from the fourth batch of a shape on it is played back. What it gives is overwritten by the next call.

    Only what a GPU does is played back: everything in Python happens while recording, and never again. A step that
    cannot be recorded, because it waits for the GPU, goes on as it is, and a warning says so.
    """
    stream, met = torch.cuda.Stream(), Counter[torch.Size]()
    recordings: dict[torch.Size, _Recording] = {}
    possible = True

    def run(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal possible
        shape = images.shape
        if shape not in recordings and possible and met[shape] == EAGER:
            try:
                recordings[shape] = _record(step, images, labels, stream)
            except RuntimeError as error:
                possible = False
                warnings.warn(f"the training step cannot be a CUDA graph, it goes on without: {error}", stacklevel=2)
        if shape in recordings:
            return recordings[shape].play(images, labels)
        met[shape] += 1
        # On the stream that will record, because autograd's nodes remember where they were made
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = step(images, labels)
        torch.cuda.current_stream().wait_stream(stream)
        return found

    return run


def _record(step: Step, images: Tensor, labels: Tensor, stream: torch.cuda.Stream) -> _Recording:
    inputs, graph = (images.clone(), labels.clone()), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = step(*inputs)
    return _Recording(graph, inputs, outputs)
