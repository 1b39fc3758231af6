"""One training in several processes, which torchrun starts: who this process is, and everything that they agree on.

With one process every function here gives back what it was given. With several, all of them must make the same calls in
the same order; what may fail in one alone (a disk, a download) is called through `on_main` or `in_turn`, which make its
error everybody's, such that nobody waits for a process that has gone.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import FAILED, UserError

T = TypeVar("T")
LOST = "another process of this training ended without a word; go on with: convlens train --resume RUN"
PATIENCE = timedelta(seconds=10)  # how long a process that failed waits for the main one to say so

# Whether every process works on the same whole batch, because it has fewer images than there are processes.
_whole = False


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def on_main(function: Callable[..., T], *args: Any) -> T:
    """Call it in the main process only, which is the one that writes; its result, or its error, is everybody's."""
    if world() == 1:
        return function(*args)
    error, told = None, [None, None]
    if rank() == 0:
        try:
            told = [function(*args), None]  # type: ignore[list-item] # any result
        except Exception as caught:
            error, told = caught, [None, _note(caught)]  # type: ignore[list-item] # any note
    dist.broadcast_object_list(told, src=0)
    _raise(error, told[1])
    return told[0]  # type: ignore[return-value] # what the function gave


def in_turn(function: Callable[..., T], *args: Any) -> T:
    """Call it in the first process of every machine, then in the others: what it downloads is there by then. An error
    of any process is everybody's."""
    if world() == 1:
        return function(*args)
    result = None
    for turn in (True, False):
        error = None
        if (int(os.environ.get("LOCAL_RANK", rank())) == 0) is turn:
            try:
                result = function(*args)
            except Exception as caught:
                error = caught
        told: list[Any] = [None] * world()
        dist.all_gather_object(told, error and _note(error))
        _raise(error, next(filter(None, told), None))
    return result  # type: ignore[return-value] # what the function gave, in one of the turns


def most(number: int) -> int:
    """The greatest of all processes' numbers."""
    if world() == 1:
        return number
    told = torch.tensor(int(number))
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def mine(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """This process's share of a batch, and the weight of its mean loss: the average over the processes of the weighted
    losses, and so of their gradients, is the mean over the batch. Where there are fewer images than processes, each
    takes all of them."""
    global _whole
    _whole = len(labels) < world()
    if world() == 1 or _whole:
        return images, labels, 1.0
    share = labels.tensor_split(world())[rank()]
    return images.tensor_split(world())[rank()], share, len(share) * world() / len(labels)


def of_batch(loss: Tensor, right: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Mean loss and right answers of the whole batch, from those of this process's share."""
    if world() == 1:
        return loss, right
    both = torch.stack([loss.double() * weight, right.double() * (1 if _whole else world())])
    dist.all_reduce(both)
    both /= world()
    return both[0], both[1]


def portion(rows: Tensor) -> Tensor:
    """This process's share of the rows, as long as everybody's: the last row fills up what is missing."""
    if world() == 1:
        return rows
    share = -(-len(rows) // world())
    return rows[torch.arange(rank() * share, (rank() + 1) * share, device=rows.device).clamp(max=len(rows) - 1)]


def gathered(part: Tensor, count: int) -> Tensor:
    """What all processes made of their portions of `count` rows, each row once; tensors on the CPU."""
    if world() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)[:count]


def parallel(model: nn.Module) -> nn.Module:
    """What computes `model` on this process's share: gradients are averaged over the processes, and in training mode
    its batch norms take the statistics of the whole batch. The model itself stays what it is, also by its names."""
    if world() == 1:
        return model
    for layer in model.modules():
        if type(layer) in _synced():
            layer.__class__ = _synced()[type(layer)]
    # A filter of one channel or one pixel lies in memory the same way by two accounts, which DDP says is slow
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    device = next(model.parameters()).device
    kind = nn.parallel.DistributedDataParallel
    # The statistics of batch norm are the same everywhere as they are; torch 2.13 has another word for leaving them so
    newer = "forward_sync_buffers" in inspect.signature(kind).parameters
    settings: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return kind(model, device_ids=[device] if device.type == "cuda" else None, **settings)


def by_itself(model: Any, alone: bool = True) -> contextlib.AbstractContextManager[None]:
    """Inside the `with` the gradients of what `parallel` gave stay in each process, if `alone`; the next ones outside
    of it are averaged together with them."""
    return model.no_sync() if alone and world() > 1 else contextlib.nullcontext()


class _Synced(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batch of all processes; torch's own SyncBatchNorm takes tensors on a GPU only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world() == 1 or _whole:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None  # noqa: S101 - it is there where the other two are
            self.num_batches_tracked.add_(1)
            newest = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, newest)
            self.running_var.lerp_(variance * (count / (count - 1)), newest)
        return y


@functools.cache
def _synced() -> dict[type, type]:
    """For each kind of batch norm the one that takes its place."""
    forward = torch.compiler.disable(_Synced.forward)  # not said above: it takes two seconds to import
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return {kind: type(kind.__name__, (_Synced, kind), {"forward": forward}) for kind in kinds}


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and (biased) variance over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        exact = torch.promote_types(x.dtype, torch.float32)
        zero, one = (torch.full((channels,), value, dtype=exact, device=x.device) for value in (0.0, 1.0))
        mean, variance = torch.batch_norm_update_stats(x, zero, one.clone(), 0.0)
        mean, variance = mean.double(), variance.double()  # the difference of squares below is exact enough then
        sums = torch.cat([mean, variance + mean**2, one[:1].double()]) * (x.numel() // channels)
        dist.all_reduce(sums)
        count = sums[-1]
        mean, squares = (sums[:-1] / count).chunk(2)
        mean, variance = mean.to(exact), (squares - mean**2).clamp(min=0).to(exact)
        weight = one if weight is None else weight
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([dweight, dbias])
        dist.all_reduce(sums)
        if ctx.needs_input_grad[0]:
            shape = (1, -1, *(1,) * (x.ndim - 2))
            by_scale, by_shift = (sums / count).chunk(2)
            deviation = (variance + ctx.eps).rsqrt()
            slope = (weight * deviation**2 * by_scale).view(shape)
            level = (weight * deviation * by_shift).view(shape)
            dx = (dx - level - (x - mean.view(shape)) * slope).to(dx.dtype)
        needed = ctx.needs_input_grad
        return dx if needed[0] else None, dweight if needed[1] else None, dbias if needed[2] else None, None


def joined(program: Callable[[], None]) -> None:
    """Run the program in a process that torchrun started. The main process alone prints; all end together, with the
    same exit code, and what failed in one of them is said once."""
    store, me, _ = next(iter(dist.rendezvous("env://")))
    gpu = torch.cuda.is_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=me, world_size=int(os.environ["WORLD_SIZE"])
    )
    streams = sys.stdout, sys.stderr
    code: Any = FAILED
    said, lost = "", False
    with Path(os.devnull).open("w") as nowhere:
        if me:
            sys.stdout = sys.stderr = nowhere
        try:
            program()
            code = 0
        except SystemExit as end:
            code = end.code or 0
            if code and isinstance(end.__context__, UserError):
                said = str(end.__context__)
        except Exception as error:
            sys.stdout, sys.stderr = streams
            told = _told(store)
            lost = told is None and _is_lost(error)
            if not told and not lost:
                traceback.print_exc()
                said = f"process {me} of {dist.get_world_size()} failed: {error!r}"
            else:
                reason, code = told or (LOST, FAILED)
                if me == 0:
                    print(f"convlens: {reason}", file=sys.stderr)
        finally:
            sys.stdout, sys.stderr = streams
    with contextlib.suppress(RuntimeError):  # whoever keeps the store may have gone
        if said:
            store.compare_set("failed", "", json.dumps([said, code]))
        dist.destroy_process_group()  # who waits for this process in vain learns it now
        if code and not lost:
            _leave(store, me, said)
    sys.exit(code)


def _leave(store: Any, me: int, said: str) -> None:
    """torchrun ends all processes as soon as one has failed: the main one must have had its say before. It may also be
    the one that keeps the store, so it waits for the others in turn."""
    if me == 0:
        store.set("said", "")
        store.wait([f"left {other}" for other in range(1, int(os.environ["WORLD_SIZE"]))], PATIENCE)
        return
    try:
        store.wait(["said"], PATIENCE)
    except RuntimeError:
        if said:
            print(f"convlens: {said}", file=sys.stderr)
    store.set(f"left {me}", "")


def _told(store: Any) -> tuple[str, int] | None:
    """What another process said that it failed of, and its exit code."""
    with contextlib.suppress(RuntimeError):
        if store.check(["failed"]):
            reason, code = json.loads(store.get("failed"))
            return reason, code
    return None


def _is_lost(error: Exception) -> bool:
    """Whether it says that another process could not be reached; gloo has no error of its own."""
    words = ("gloo", "Connection closed", "Connection reset", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _note(error: Exception) -> tuple[str, int]:
    """An error as the other processes raise it."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    return f"process {rank()} of {world()} failed: {error!r}", FAILED


def _raise(own: Exception | None, note: tuple[str, int] | None) -> None:
    if own is not None and not isinstance(own, UserError):
        raise own
    if note:
        raise UserError(*note) from own
