"""A model file as ONNX: pixels in, logits and calibrated probabilities out, everything between them in the graph."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import FAILED, UserError, one_line
from .modelfile import ModelFile
from .onnxfile import OPERATORS, seal
from .packing import LARGEST, pack

if TYPE_CHECKING:  # an extra
    import onnx

OPSET = 18  # the newest that torch's exporter writes by itself, without converting


class Answering(nn.Module):
    """What leaves: uint8 (N, C, H, W) -> logits and softmax(logits / temperature), both float32 (N, K)."""

    def __init__(self, file: ModelFile) -> None:
        super().__init__()
        # contiguous: where maps lie channel by channel no step of the graph is about how they lie
        model = copy.deepcopy(file.model).cpu().float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload] # torch's stubs lack this overload
        self.model, self.temperature = model.eval(), file.manifest.calibration.temperature
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return logits, (logits / self.temperature).softmax(1)


def traced(file: ModelFile) -> torch.export.ExportedProgram:
    """The network as a graph of torch's own operators, for batches of any size.

    Raises:
        UserError: it cannot be traced, such as one whose path through its layers the pixels decide.
    """
    # three: a batch of one or two might be taken for a size that is fixed
    images = torch.as_tensor(file.golden.images[:1]).repeat(3, 1, 1, 1)
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            return torch.export.export(
                Answering(file), (images,), dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}}
            )
    except Exception as error:  # torch has many kinds, and what a network of your own does may be any other
        raise _refusal(file, error) from error


def to_onnx(file: ModelFile) -> onnx.ModelProto:
    """The graph in ONNX, its weights in it, without metadata. Inputs and outputs: `images` uint8 (N, C, H, W); `logits`
    and `probabilities` float32 (N, K).

    Raises:
        UserError: no onnx or onnxscript, or a network that ONNX has no operators for.
    """
    try:
        import onnxscript  # noqa: F401 - torch needs it, and says so less clearly
    except ImportError as error:
        raise UserError("ONNX is written with onnx and onnxscript: pip install 'convlens[export]'") from error
    program = traced(file)
    try:
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits", "probabilities"],
            )
            assert exported is not None  # noqa: S101 - the older exporter gives none
            model = exported.model_proto
    except Exception as error:  # see `traced`
        raise _refusal(file, error) from error
    if other := sorted({node.op_type for node in model.graph.node} - OPERATORS):
        raise UserError(
            f"the network {file.manifest.builder} cannot be exported: no .onnx of ConvLens has {other}", FAILED
        )
    del model.graph.value_info[:]  # the shapes between the layers, which follow from the rest
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # torch writes down the source line of every operator, with the path of the file
        part.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def onnx_bytes(model: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    """The file: a graph with metadata, sealed. Raises UserError where it is larger than protobuf allows."""
    from google.protobuf.message import EncodeError

    del model.metadata_props[:], model.graph.metadata_props[:]
    own = [each for each in model.opset_import if not each.domain]  # quantising notes down those of others, unused
    del model.opset_import[:]
    model.opset_import.extend(own)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    try:
        data = model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise UserError(f"the network is larger than the {LARGEST:,} bytes that an .onnx can have") from error
    return seal(data)


def export_onnx(file: ModelFile, model: onnx.ModelProto | None = None) -> bytes:
    """A model file as the bytes of an .onnx; `model` is what `to_onnx` made of it, where that is known already. Raises
    UserError as `to_onnx` and `onnx_bytes` do."""
    return onnx_bytes(model or to_onnx(file), pack(file.manifest, file.golden))


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the `with` torch keeps to itself what no user can mend: that its exporter uses what its own trees
    deprecate, that there is no torchvision, and the traceback of what is wrong with a .pt2, which is raised, too."""
    registration, loading = (
        logging.getLogger(f"torch.{name}") for name in ("onnx._internal.exporter._registration", "export")
    )

    def told(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("torchvision is not installed", "Ran into the following error"))

    registration.addFilter(told)
    loading.addFilter(told)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\). is deprecated", FutureWarning)
            yield
    finally:
        registration.removeFilter(told)
        loading.removeFilter(told)


def _refusal(file: ModelFile, error: Exception) -> UserError:
    return UserError(f"the network {file.manifest.builder} cannot be exported: {one_line(error)}", FAILED)
