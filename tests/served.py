"""A real server in a process of its own, and what it is asked with."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from convlens import InputSpec, build
from convlens.manifest import Golden, Manifest
from convlens.modelfile import ModelFile, save_model
from convlens.operating import Calibration, OperatingPoint, energy

CLASSES = ("cat", "dog", "猫", "a “b”")
SPEC = InputSpec((28, 28), 1)


def save_served(folder: Path, golden: float = 0.0) -> Path:
    """A small network that was not trained; `golden` is added to the logits that it is checked by."""
    model = build("lenet5", channels=1, classes=4, size=(28, 28), mean=(0.3,), std=(0.2,), seed=9).eval()
    images = digits(24)
    with torch.no_grad():
        weight, bias = list(model.parameters())[-2:]
        bias.sub_(model(torch.from_numpy(images)).mean(0))  # so that its answers differ
        weight.mul_(20)
        bias.mul_(20)
        logits = model(torch.from_numpy(images)).numpy()
    low, high = np.quantile(energy(logits, 1.5), (0.2, 0.8)).tolist()
    calibration = Calibration(1.5, 400, (low, high), (OperatingPoint(0, 0.875, 1), OperatingPoint(0.3, 0.9, 0.7)))
    manifest = Manifest("lenet5", {}, SPEC, CLASSES, {"name": "mine"}, {"test_accuracy": 0.5}, calibration)
    folder.mkdir(exist_ok=True)
    save_model(
        folder / "model.safetensors", ModelFile(model, manifest, Golden(images[:3], logits[:3] + np.float32(golden)))
    )
    return folder / "model.safetensors"


def digits(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (N, 1, 28, 28) of noise, each of its own brightness, so that the answers differ."""
    draw = np.random.default_rng(seed)
    return (draw.random((count, 1, 28, 28)) * draw.uniform(20, 256, (count, 1, 1, 1))).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", size: tuple[int, int] | None = None) -> bytes:
    """uint8 (1, H, W) as a file."""
    picture, buffer = Image.fromarray(image[0]), io.BytesIO()
    (picture.resize(size) if size else picture).save(buffer, kind)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(*sizes: tuple[int, int]) -> bytes:
    """A PNG that says each of the (width, height), one header after the other, and has the pixels of the last."""
    width, height = sizes[-1]
    heads = b"".join(chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)) for size in sizes)
    data = zlib.compress(bytes((width + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + heads + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class Server:
    """`convlens serve` at a free port while the `with` lasts. `stderr` has what it wrote once it has ended."""

    def __init__(self, model: Path, *flags: object, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "convlens", "serve", model, "--port", "0", "--json", *flags]
        self.errors = model.parent / f"stderr-{len(list(model.parent.iterdir()))}"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | (environment or {}),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.stderr
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def stderr(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def predict(self, body: bytes, kind: str = "image/png", **settings: Any) -> httpx.Response:
        return self.client.post("/v1/predict", content=body, headers={"content-type": kind}, **settings)

    def raw(self, data: bytes, timeout: float = 30) -> bytes:
        """Everything that comes back for `data` on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            parts = []
            while part := connection.recv(65_536):
                parts.append(part)
        return b"".join(parts)

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
