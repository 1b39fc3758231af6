"""An .onnx that ConvLens exported: opened with onnxruntime alone, sealed, and looked through before anything is run.

Only as much of protobuf is read here as that takes (the fields of onnx.proto by their numbers): the onnx package is
needed to export, not to use what was exported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import UserError, one_line
from .manifest import Golden, Manifest
from .packing import BLANK, read, require_answers, unpack

if TYPE_CHECKING:  # an extra
    import onnxruntime

MOST = 300_000  # parts that a file is looked through for; a network of a thousand layers has a fifth
LONGEST = 1 << 28  # bytes of metadata: eight golden images of 3 x 2048 x 2048 as base64

# What ConvLens writes of the messages of onnx.proto: of each field, by its number, whether it is a number, four bytes,
# a text, bytes, or which message; * where it may be there more than once. There is no field here for numbers that
# lie in another file, for functions, for graphs in an attribute, or for types other than tensors.
FIELDS = {
    "model": {1: "number", 2: "text", 3: "text", 7: "graph", 8: "opset*", 14: "entry*"},
    "opset": {1: "text", 2: "number"},
    "entry": {1: "text", 2: "text"},
    "graph": {1: "node*", 2: "text", 5: "tensor*", 10: "text", 11: "value*", 12: "value*", 13: "value*"},
    "node": {1: "text*", 2: "text*", 3: "text", 4: "text", 5: "attribute*", 6: "text", 7: "text"},
    "attribute": {1: "text", 2: "four", 3: "number", 4: "bytes", 8: "number*", 20: "number"},
    "tensor": {1: "number*", 2: "number", 4: "bytes", 5: "bytes", 8: "text", 9: "bytes"},
    "value": {1: "text", 2: "type", 3: "text"},
    "type": {1: "array"},
    "array": {1: "number", 2: "shape"},
    "shape": {1: "side*"},
    "side": {1: "number", 2: "text"},
}
WIRE = {"number": 0, "four": 5}  # how protobuf marks them; everything else is 2, bytes with their length before them
# What the exporter makes of the networks here and of the usual ones of other packages, and quantising of those. None
# has a graph in it, draws at random, or makes maps of a size that a few numbers say, but for Expand, of a class token.
NAMES = """
    Conv Gemm MatMul BatchNormalization InstanceNormalization LayerNormalization GroupNormalization LRN
    Relu Gelu Erf Sigmoid Tanh HardSigmoid HardSwish LeakyRelu PRelu Elu Mish Softplus Softmax LogSoftmax Clip
    MaxPool AveragePool GlobalMaxPool GlobalAveragePool ReduceMax ReduceMean ReduceSum ReduceL2
    Add Sub Mul Div Pow Sqrt Reciprocal Exp Log Neg Abs Max Min Sum Greater Where Cast
    Reshape Flatten Transpose Squeeze Unsqueeze Concat Split Slice Gather GatherND Shape Expand Pad Identity
    QuantizeLinear DequantizeLinear
"""
OPERATORS = frozenset(NAMES.split())


@dataclass(frozen=True)
class OnnxFile:
    """`session` takes `images`, uint8 (N, C, H, W), and gives `logits` and `probabilities`, float32 (N, K)."""

    session: onnxruntime.InferenceSession
    manifest: Manifest
    golden: Golden
    precision: str

    def outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (N, C, H, W) -> logits and probabilities, float32 (N, K). Raises UserError where the graph fails on
        them, or gives something else."""
        try:
            logits, probabilities = self.session.run(
                ["logits", "probabilities"], {"images": np.ascontiguousarray(images)}
            )
        except Exception as error:  # onnxruntime has a dozen kinds, which share no other base
            raise UserError(f"onnxruntime cannot run the network on {len(images)} images: {one_line(error)}") from error
        require_answers(logits, probabilities, (len(images), len(self.manifest.classes)))
        return logits, probabilities


def load_onnx(path: str | Path, data: bytes | None = None, threads: int | None = None) -> OnnxFile:
    """Open an .onnx that ConvLens exported, on the CPU. What is in it is arithmetic on what it holds itself: of
    onnx.proto it has FIELDS, of ONNX's operators OPERATORS, and whatever else there is in a file is refused before it
    is run. `data` are the bytes of the file, where they were read already; `threads` compute it, by default as many as
    onnxruntime takes.

    Raises:
        UserError: no such file, no onnxruntime, not ours, or damaged.
    """
    data = read(path) if data is None else data
    manifest, golden, precision = unpack(_metadata(data, path), path)
    session = open_session(data, path, threads)
    spec, classes = manifest.input, len(manifest.classes)
    said = [(value.name, value.type, value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())]
    asked = [
        ("images", "tensor(uint8)", [spec.channels, *spec.size]),
        *((name, "tensor(float)", [classes]) for name in ("logits", "probabilities")),
    ]
    if said != asked:
        raise UserError(f"{path} is damaged: it takes and gives {said}, where its metadata says {asked}")
    return OnnxFile(session, manifest, golden, precision)


def open_session(data: bytes, name: object = "the .onnx", threads: int | None = None) -> onnxruntime.InferenceSession:
    """An .onnx from memory, on the CPU, computed by `threads`. Raises UserError where onnxruntime is not installed, or
    does not take it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("an .onnx is run by onnxruntime: pip install 'convlens[export]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and said once
    if threads is not None:
        options.intra_op_num_threads = threads  # it does not look at OMP_NUM_THREADS
    try:
        # without its fallback, which prints, and tries the same once more
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # see `outputs`
        raise UserError(f"onnxruntime cannot open {name}: {one_line(error)}") from error


def seal(data: bytes) -> bytes:
    """The bytes of an .onnx whose seal is blank, with its seal: the sha256 of those very bytes."""
    start, end = _find(data, "the file")["sha256"]
    return data[:start] + hashlib.sha256(data).hexdigest().encode("ascii") + data[end:]


def seal_holds(path: str | Path, data: bytes | None = None) -> bool | None:
    """Whether the file is what was sealed, to the last bit; None where it has no seal. Raises UserError as `load_onnx`
    does."""
    data = read(path) if data is None else data
    start, end = _find(data, path).get("sha256", (0, 0))
    if end - start != len(BLANK):
        return None if start == end else False
    blank = hashlib.sha256(memoryview(data)[:start])
    blank.update(BLANK.encode("ascii"))
    blank.update(memoryview(data)[end:])
    return blank.hexdigest().encode("ascii") == data[start:end]


def _metadata(data: bytes, name: object) -> dict[str, str]:
    """All that is beside the graph, once the graph has been looked through."""
    spans = _find(data, name)
    if sum(end - start for start, end in spans.values()) > LONGEST:
        raise UserError(f"{name} has more than {LONGEST >> 20} MiB of metadata")
    try:
        return {key: data[start:end].decode() for key, (start, end) in spans.items()}
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is damaged: its metadata is not text") from error


def _find(data: bytes, name: object) -> dict[str, tuple[int, int]]:
    """Where in the bytes the value of each key of the metadata lies. All of the file is looked through on the way."""
    found: dict[str, tuple[int, int]] = {}
    seen = set()
    try:
        parts = _Parts(data)
        for message, field, start, end in parts.below("model", 0, len(data)):
            seen.add((message, field))
            if (message, field) == ("model", 14):
                entry = {part: (first, last) for part, _, first, last in parts.of(start, end)}
                key = data[slice(*entry[1])].decode()
                if key in found:
                    raise ValueError(f"its metadata has {key[:60]!r} twice")
                found[key] = entry.get(2, (end, end))
            elif (message, field) in (("node", 7), ("opset", 1)) and data[start:end] not in (b"", b"ai.onnx"):
                raise ValueError(f"it has operators of {data[start:end][:40].decode(errors='replace')!r}")
            elif (message, field) == ("node", 4) and data[start:end].decode() not in OPERATORS:
                raise ValueError(
                    f"it has the operator {data[start:end][:40].decode()!r}, which ConvLens does not write"
                )
        if ("model", 7) not in seen:
            raise ValueError("it has no graph")
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{name} is not an .onnx that ConvLens exported, or is damaged: {one_line(error)}") from error
    return found


class _Parts:
    """A message of protobuf, field by field; no more than MOST of them in all."""

    def __init__(self, data: bytes) -> None:
        self.data, self.seen = data, 0

    def below(self, message: str, start: int, end: int) -> Iterator[tuple[str, int, int, int]]:
        """(message, number, start, end) of each field of a message, then of those in it, and so on. Raises ValueError
        where there is one that FIELDS does not have, or twice what is there once: other readers would pass over it, or
        take the last one."""
        seen = set()
        for field, wire, first, last in self.of(start, end):
            form = FIELDS[message].get(field, "")
            inner = form.removesuffix("*")
            if not form or wire != WIRE.get(inner, 2) or (field in seen and inner == form):
                raise ValueError(f"its {message} has a field {field} that ConvLens does not write")
            seen.add(field)
            yield message, field, first, last
            if inner == "text":
                self.data[first:last].decode()
            elif inner in FIELDS:
                yield from self.below(inner, first, last)

    def of(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, how it is marked, start, end) of each field between two places. Raises ValueError or IndexError on
        damage."""
        while at < end:
            self.seen += 1
            if self.seen > MOST:
                raise ValueError(f"it has more than {MOST:,} parts")
            key, at = self._number(at)
            if not 8 <= key < 1 << 32:  # other readers keep the lowest 32 bits
                raise ValueError("it is no protobuf")
            start, wire = at, key & 7
            if wire == 0:
                _, at = self._number(at)
            elif wire == 2:
                length, start = self._number(at)
                at = start + length
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise ValueError("it is no protobuf")
            if at > end:
                raise ValueError("it ends too early")
            yield key >> 3, wire, start, at

    def _number(self, at: int) -> tuple[int, int]:
        """A whole number below 2^64 in base 128, the lowest digits first, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128 and value < 1 << 64:
                return value, at
        raise ValueError("it is no protobuf")
