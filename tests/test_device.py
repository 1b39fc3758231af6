"""device: which precision is chosen, and the memory that a process keeps."""

from __future__ import annotations

import sys

import pytest
import torch

from convlens.device import BF16_FROM, autocast, keep_memory, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_that_was_asked_for_is_taken(name: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    for device in ("cpu", "cuda", "mps"):
        for flops in (0, BF16_FROM, 10**12):
            assert pick_precision(name, torch.device(device), flops) == name


@pytest.mark.parametrize(
    ("native", "flops", "expected"),
    [
        (True, 0, "fp32"),
        (True, BF16_FROM - 1, "fp32"),
        (True, BF16_FROM, "bf16"),
        (True, 10**12, "bf16"),
        (False, BF16_FROM, "fp32"),
        (False, 10**12, "fp32"),
    ],
)
def test_auto_on_a_cpu_weighs_instructions_and_arithmetic(
    native: bool, flops: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert pick_precision("auto", CPU, flops) == expected
    assert pick_precision("auto", torch.device("mps"), flops) == "fp32"


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_is_what_the_gpu_has(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    for flops in (0, 10**12):
        assert pick_precision("auto", torch.device("cuda"), flops) == ("bf16" if native else "fp32")


def test_the_context_of_a_precision() -> None:
    a = torch.ones(3, 3)
    with autocast(CPU, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype == torch.float32


def test_keeping_memory_changes_nothing_but_the_time() -> None:
    for _ in range(2):  # it may be called again and again
        keep_memory()
        blocks = [torch.full((n,), float(n)) for n in (10, 10_000, 5_000_000)]
        assert [block.sum().item() for block in blocks[:2]] == [10.0**2, 10_000.0**2]
        assert blocks[2][0] == blocks[2][-1] == 5_000_000
        del blocks


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_keeping_memory_is_for_linux(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("there is no mallopt to call")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("convlens.device.ctypes.CDLL", touched)
    keep_memory()
