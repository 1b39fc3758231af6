"""Export: what others run says what PyTorch says, for every network, and a file that does not is not kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from convlens import MODELS, InputSpec
from convlens.errors import FAILED
from convlens.modelfile import save_model
from convlens.onnxexport import export_onnx
from convlens.onnxfile import load_onnx, seal_holds
from convlens.operating import probabilities_of
from convlens.pt2file import export_pt2, load_pt2
from refusals import refused
from test_modelfile import make_file, some_images

pytestmark = pytest.mark.usefixtures("operators_read_once")


COLOURS = [
    pytest.param(name, channels, marks=() if often else pytest.mark.slow)
    for name in MODELS
    for channels in (1, 3)
    for often in [name == "lenet5" or (channels == 3 and name not in ("resnet9", "resnet18"))]
]
TOGETHER = {"widths": [4, 6], "convs": 1, "members": 3, "mirror": True}


@pytest.mark.parametrize(
    ("name", "channels", "args"), [*(pytest.param(*p.values, {}, marks=p.marks) for p in COLOURS), ("vgg", 3, TOGETHER)]
)
def test_onnx_says_what_the_network_says(name: str, channels: int, args: dict, tmp_path: Path) -> None:
    spec = InputSpec((28, 32), channels)
    file, path = make_file(name, spec, args=args), tmp_path / "model.onnx"
    path.write_bytes(export_onnx(file))
    opened = load_onnx(path)
    assert opened.manifest == file.manifest
    assert np.array_equal(opened.golden.images, file.golden.images)
    assert np.array_equal(opened.golden.logits, file.golden.logits)
    assert opened.precision == "fp32"
    for count in (1, 2, 17):
        images = some_images(count, spec, seed=count).numpy()
        expected = file.logits(images)
        logits, probabilities = opened.session.run(None, {"images": images})
        assert np.abs(logits - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1)
        assert np.abs(probabilities - probabilities_of(expected, 1.5)).max() < 1e-5
        assert np.array_equal(opened.outputs(images)[0], logits)
    path.unlink()


def test_an_onnx_is_one_file_that_others_can_read(tmp_path: Path) -> None:
    file, path = make_file("lenet5", InputSpec((28, 28), 1)), tmp_path / "model.onnx"
    path.write_bytes(export_onnx(file))
    assert seal_holds(path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["format"], json.loads(metadata["classes"])) == ("convlens", list(file.manifest.classes))
    shapes = onnxruntime.InferenceSession(path).get_inputs()[0].shape
    assert shapes == ["N", 1, 28, 28]
    assert load_onnx(path, threads=3).session.get_session_options().intra_op_num_threads == 3
    assert str(Path(__file__).parent.parent).encode() not in path.read_bytes()  # the source lines that torch notes down


def test_the_command_writes_and_verifies(tmp_path: Path, convlens) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, make_file("lenet5", InputSpec((28, 28), 1)))
    done = convlens("export", path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'model.onnx'}\n")
    assert "verified: " in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.safetensors"]
    found = convlens("verify", tmp_path / "model.onnx")
    assert found.returncode == 0
    assert "is sound" in found.stdout


NETWORKS = [
    *(pytest.param(name, {}, marks=pytest.mark.slow if name == "resnet18" else ()) for name in MODELS),
    *(("lenet5", {"norm": norm, "pooling": "max", "activation": "sigmoid"}) for norm in ("batch", "local-response")),
    *(("lenet5", {"activation": kind}) for kind in ("tanh", "relu")),
    ("lenet5", {"members": 2, "mirror": True}),
    *(("speednet", {"widths": [4, 6], "activation": kind, "head": "flat"}) for kind in ("relu", "silu")),
]


@pytest.mark.parametrize(("name", "args"), NETWORKS, ids=str)
def test_every_network_can_be_a_pt2(name: str, args: dict, tmp_path: Path) -> None:
    """All its operators are in the list of those that a .pt2 may have."""
    file, path = make_file(name, InputSpec((28, 28), 1), args=args), tmp_path / "model.pt2"
    path.write_bytes(export_pt2(file))
    logits, probabilities = load_pt2(path).outputs(file.golden.images)
    assert np.abs(logits - file.golden.logits).max() <= 1e-5 * max(np.abs(file.golden.logits).max(), 1)
    assert np.abs(probabilities - probabilities_of(logits, 1.5)).max() < 1e-5
    path.unlink()


class Elsewhere(nn.Module):
    """What networks of timm and torchvision are made of: a class token, attention, layer norms, squeeze and excitation,
    shuffled channels, activations that write into their input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(True), nn.Hardswish(True))
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.SiLU(True), nn.Hardsigmoid())
        self.token, self.scale = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.ones(8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(functional.relu(x.mean((2, 3), keepdim=True), inplace=True)) + self.depth(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        x = torch.cat(x.chunk(2, 1), 1).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(n, -1, -1), x], 1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0] * self.scale
        q, k, v = self.qkv(functional.gelu(x)).reshape(n, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, 8)
        x = x + ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1).mean((1, 3)).unsqueeze(-1)
        return self.head(x[:, 0])


def test_what_networks_of_others_are_made_of_can_leave(tmp_path: Path) -> None:
    file = make_file("vgg", InputSpec((12, 14), 3), args={"widths": [4]})
    file = replace(file, model=nn.Sequential(file.model[0], Elsewhere()).eval())
    expected = file.logits(file.golden.images)
    for name, write, load in (("a.onnx", export_onnx, load_onnx), ("a.pt2", export_pt2, load_pt2)):
        (tmp_path / name).write_bytes(write(file))
        assert np.abs(load(tmp_path / name).outputs(file.golden.images)[0] - expected).max() < 1e-5


def test_a_network_with_operators_of_no_list_is_refused() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).cumsum(1)[:, :1].repeat(1, 4)

    file = make_file("vgg", InputSpec((12, 14), 3), args={"widths": [4]})
    file = replace(file, model=nn.Sequential(file.model[0], Drawing()).eval())
    refused(
        lambda: export_pt2(file), "network vgg cannot be exported as .pt2", "torch.ops.aten.cumsum", exit_code=FAILED
    )
    refused(lambda: export_onnx(file), "network vgg cannot be exported", "CumSum", exit_code=FAILED)
