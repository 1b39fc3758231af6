"""Where the arithmetic happens: device, precision, threads, seeds, and a timer that waits for the device."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import time

import numpy as np
import torch

from .errors import UserError

BF16_FROM = 2_000_000
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; under torchrun every process has a GPU of its own.

    Raises:
        UserError: the named device is not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else name
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here; use 'auto' or 'cpu'") from error
    return device


def pick_precision(name: str, device: torch.device, flops: int) -> str:
    """`fp32` or `bf16`: what was asked for, or with `auto` the faster one for a network of so many floating point
    operations an image (forward). On a GPU that is bf16 wherever it is native; on a CPU with bf16 instructions it is
    from BF16_FROM on, below which converting back and forth costs more than it saves."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # torch has no public question for this
    return "bf16" if native and flops >= BF16_FROM else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass in `bf16`, or none for `fp32`. Weights stay fp32; batch norm's statistics too."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def choose_kernels(device: torch.device) -> None:
    """Let this process try cuDNN's algorithms for a convolution the first time that it meets its shape, on a GPU, and
    keep to the fastest."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for as long as it lives, on Linux with glibc.

    A training step asks for the same few large tensors again and again. By default each is mapped anew and given back,
    and the kernel must clear every page: on large batches that took half of the time of a step.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def mix_seed(*numbers: int) -> int:
    """One well-spread 63-bit seed from several whole numbers, such as (seed, epoch, step)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def random_state(device: torch.device) -> torch.Tensor:
    """The state of torch's generator on `device`, which dropout there draws from."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else torch.get_rng_state()


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Put back what `random_state` gave; the state of another kind of device, which has another length, is left out."""
    if state.shape != random_state(device).shape:
        return
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.set_rng_state(state)


class Timer:
    """Seconds since it was made, after all work queued on `device` is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self._now()

    def seconds(self) -> float:
        return self._now() - self.start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def environment(device: torch.device) -> dict[str, object]:
    """What a reader must know to repeat a run: versions, device, threads. No user or host name."""
    from . import __version__

    return {
        "convlens": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
