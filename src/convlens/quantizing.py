"""A model file as an ONNX of 8-bit integers: static quantisation by onnxruntime, calibrated on training images.

Weights are int8, per filter; the maps between the layers uint8. The weights use 7 of their 8 bits (`reduce_range`):
processors without VNNI add two products of 8 by 8 bits in 16 bits, which overflow; 2 * 255 * 63 fits, so all get the
same sums. What is little work stays float32, where it costs no accuracy: the normalisation, activations other than
ReLU, and the logits, of which 256 steps would make ties.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .manifest import Golden
from .modelfile import ModelFile
from .onnxexport import onnx_bytes
from .onnxfile import open_session
from .packing import pack

if TYPE_CHECKING:  # an extra
    import onnx

CALIBRATED = 512  # training images
BATCH = 64
PRODUCTS = "Conv", "Gemm", "MatMul"  # where the work is
# and what may stay in integers between them
QUANTISED = *PRODUCTS, "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Add"


def quantised(file: ModelFile, model: onnx.ModelProto, images: np.ndarray) -> bytes:
    """What `to_onnx` made of a model file as the bytes of a quantised .onnx, calibrated on `images` uint8 (N, C, H, W),
    of the training set. Its golden logits are its own: it rounds what the network says."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, plain)
        quant_pre_process(plain, plain, skip_symbolic_shape=True)  # folds constants and batch norms
        quantize_static(
            plain,
            small,
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=_in_float(onnx.load(plain).graph),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        made = onnx.load(small)
        (logits,) = open_session(small.read_bytes()).run(["logits"], {"images": file.golden.images})
    return onnx_bytes(made, pack(file.manifest, Golden(file.golden.images, logits), "int8"))


def _in_float(graph: onnx.GraphProto) -> list[str]:
    """The names of nodes that stay as they are: those before the first product, sums with constants, which belong to an
    activation, and what puts the logits of an ensemble together behind the last product."""
    kinds = [node.op_type for node in graph.node]
    products = [i for i, kind in enumerate(kinds) if kind in PRODUCTS] or [0]
    first, last = products[0], products[-1]
    constants = {value.name for value in graph.initializer}
    sums = [node.name for node in graph.node if node.op_type == "Add" and constants & set(node.input)]
    together = [node.name for node in graph.node[last:] if node.op_type == "Concat"]
    return [*(node.name for node in graph.node[:first]), *sums, *together]


class _Reader:
    """What onnxruntime asks for calibration images."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.array_split(images, -(-len(images) // BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}
