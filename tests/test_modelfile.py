"""The model file: what comes back is what was saved, and what is not a model file is refused with a sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from convlens import MODELS, InputSpec, build
from convlens.calibration import Calibration, OperatingPoint
from convlens.errors import UserError
from convlens.modelfile import FORMAT, ModelFile, golden_difference, load_model, save_model


def some_images(count: int, spec: InputSpec, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, spec.channels, *spec.size), dtype=torch.uint8, generator=generator)


def make_file(name: str, spec: InputSpec, **settings: Any) -> ModelFile:
    """A file of a network that has met a batch in training mode, so that its batch norms hold something."""
    classes = ("cat", "dog", "猫", "a “b”")
    args = settings.get("args", {})
    mean, std = (0.3,) * spec.channels, (0.2,) * spec.channels
    model = build(name, channels=spec.channels, classes=4, size=spec.size, mean=mean, std=std, args=args, seed=9)
    with torch.no_grad():
        model.train()(some_images(8, spec, seed=1))
        golden = some_images(3, spec, seed=2)
        logits = model.eval()(golden)
    recipe, metrics = {"name": "mine", "optim": {"lr": 0.1}}, {"test_accuracy": 0.5}
    calibration = Calibration(
        1.5, 400, (-9.5, -2.25), (OperatingPoint(0, 0.875, 1), OperatingPoint(0.1 + 0.2, 0.9, 0.7))
    )
    return ModelFile(model, name, args, spec, classes, recipe, metrics, golden, logits, calibration)


SMALL = InputSpec((12, 14), 3, "fit")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ModelFile, Path]:
    file = make_file("vgg", SMALL, args={"widths": [4, 6], "convs": 1})
    save_model(tmp_path / "model.safetensors", file)
    return file, tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    spec = InputSpec((28, 32), 3)
    file, path = make_file(name, spec), tmp_path / "model.safetensors"
    save_model(path, file)
    state = torch.get_rng_state()
    loaded = load_model(path)
    assert torch.equal(torch.get_rng_state(), state)
    images = some_images(2, spec, seed=5)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), file.model(images))
    assert golden_difference(loaded) == 0
    assert not loaded.model.training
    for key, value in file.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)
    path.unlink()  # 45 MB of ResNet-18 need not outlive the test


def test_everything_beside_the_weights_comes_back(saved: tuple[ModelFile, Path]) -> None:
    file, path = saved
    loaded = load_model(str(path))
    for field in ("name", "args", "input", "classes", "recipe", "metrics", "calibration"):
        assert getattr(loaded, field) == getattr(file, field), field
    assert isinstance(loaded.input.size, tuple)
    assert torch.equal(loaded.golden_images, file.golden_images)
    assert torch.equal(loaded.golden_logits, file.golden_logits)
    assert loaded.golden_images.dtype == torch.uint8
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_the_normalisation_is_in_the_file(saved: tuple[ModelFile, Path]) -> None:
    """load_model is not told mean and std; a copy built without them answers otherwise."""
    file, path = saved
    assert str(load_model(path).model.normalize) == "Normalize(mean=[0.3, 0.3, 0.3], std=[0.2, 0.2, 0.2])"
    other = build("vgg", channels=3, classes=4, size=(12, 14), args=file.args, seed=9).eval()
    with torch.no_grad():
        assert (other(file.golden_images) - file.golden_logits).abs().max() > 1e-3


def test_golden_difference_tells_of_changed_weights(saved: tuple[ModelFile, Path]) -> None:
    loaded = load_model(saved[1])
    with torch.no_grad():
        loaded.model.network.classifier[-1].bias[2] += 0.25
    assert golden_difference(loaded) == pytest.approx(0.25, abs=1e-6)


def test_anyone_can_read_it_with_safetensors_alone(saved: tuple[ModelFile, Path]) -> None:
    file, path = saved
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        assert (metadata["format"], metadata["version"]) == ("convlens", str(FORMAT))
        config = json.loads(metadata["config"])
        names = set(opened.keys())
    assert config["classes"] == list(file.classes)
    assert config["input"] == {"size": [12, 14], "channels": 3, "resize": "fit"}
    assert names == {f"model.{key}" for key in file.model.state_dict()} | {"golden.images", "golden.logits"}


def rewrite(path: Path, changes: dict[str, Any], drop_tensor: str = "", **metadata_changes: str) -> None:
    """Change entries of the file's config (None removes one) and of its metadata."""
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {key: opened.get_tensor(key) for key in opened.keys() if key != drop_tensor}  # noqa: SIM118 - not a dict
    config = {**json.loads(metadata["config"]), **changes}
    metadata["config"] = json.dumps({key: value for key, value in config.items() if value is not None})
    path.write_bytes(safetensors.torch.save(tensors, metadata={**metadata, **metadata_changes}))


def test_what_is_not_a_model_file(saved: tuple[ModelFile, Path], tmp_path: Path) -> None:
    _, path = saved
    good = path.read_bytes()
    with pytest.raises(UserError, match=r"there is no model file .*absent\.safetensors"):
        load_model(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="is not a ConvLens model file"):
        load_model(tmp_path)
    header = 8 + int.from_bytes(good[:8], "little")
    for length in (0, 5, 8, header // 2, header, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match=r"model\.safetensors is not a ConvLens model file, or is damaged: .+"):
            load_model(path)
    for other in (b"PK\x03\x04 a zip file, such as torch.save writes", b"\x89PNG\r\n\x1a\n" + b"\0" * 100):
        path.write_bytes(other)
        with pytest.raises(UserError, match="is not a ConvLens model file"):
            load_model(path)
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(UserError, match="is a safetensors file, but not a ConvLens model file"):
            load_model(path)


def test_a_newer_format(saved: tuple[ModelFile, Path]) -> None:
    _, path = saved
    rewrite(path, {}, version=str(FORMAT + 1))
    with pytest.raises(UserError, match=rf"has format {FORMAT + 1}; this ConvLens reads up to {FORMAT}: update it"):
        load_model(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"builder": None}, "is damaged: 'builder'"),
        ({"input": {"channels": 3}}, "is damaged: 'size'"),
        ({"input": {"size": [8, 8], "channels": 3, "colour": 1}}, "is damaged: .*colour"),
        ({"classes": None}, "is damaged: 'classes'"),
        ({"classes": ["a", "b"]}, r"the weights in .* do not fit the network vgg that it names"),
        ({"builder": "resnet20", "args": {}}, r"the weights in .* do not fit the network resnet20 that it names"),
        ({"builder": "vgh"}, r"unknown model 'vgh'; did you mean 'vgg'\?"),
        ({"input": {"size": [2, 2], "channels": 3}}, r"the model vgg does not take images of 2 x 2"),
        ({"args": {"width": 1}}, "unknown argument of the model vgg 'width'"),
    ],
)
def test_a_config_that_makes_no_sense(changes: dict[str, Any], message: str, saved: tuple[ModelFile, Path]) -> None:
    rewrite(saved[1], changes)
    with pytest.raises(UserError, match=message):
        load_model(saved[1])


@pytest.mark.parametrize("tensor", ["golden.images", "golden.logits", "model.normalize.scale"])
def test_a_tensor_is_missing(tensor: str, saved: tuple[ModelFile, Path]) -> None:
    rewrite(saved[1], {}, drop_tensor=tensor)
    with pytest.raises(UserError, match=r"is damaged|do not fit"):
        load_model(saved[1])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's own that leaves a mark whenever it is imported."""
    name = "a_network_of_my_own"
    (tmp_path / f"{name}.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        f"with open({str(tmp_path / 'imported')!r}, 'a') as mark:\n    mark.write('x')\n"
        "def net(channels, classes, size):\n"
        "    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), head)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_file_does_not_decide_what_code_is_imported(own: str, tmp_path: Path) -> None:
    file, path, mark = make_file(f"{own}:net", SMALL), tmp_path / "model.safetensors", tmp_path / "imported"
    save_model(path, file)
    sys.modules.pop(own)
    mark.unlink()
    for builder in (None, "vgg", f"{own}:other", f"{own}", "other:net"):
        with pytest.raises(UserError) as caught:
            load_model(path, builder)
        assert str(caught.value) == (
            f"{path} was built by {own}:net, which is not part of ConvLens; if you trust that code, name it: "
            f"-m {own}:net"
        )
        assert own not in sys.modules
        assert not mark.exists()
    loaded = load_model(path, f"{own}:net")
    assert mark.read_text() == "x"
    assert golden_difference(loaded) == 0
    assert loaded.name == f"{own}:net"


def test_a_file_that_names_any_module_is_refused_unimported(saved: tuple[ModelFile, Path], own: str) -> None:
    rewrite(saved[1], {"builder": f"{own}:net"})
    with pytest.raises(UserError, match="which is not part of ConvLens"):
        load_model(saved[1])
    assert own not in sys.modules


def test_saving_does_not_move_the_model_into_another_layout(saved: tuple[ModelFile, Path]) -> None:
    file, path = saved
    convolution = next(m for m in file.model.modules() if isinstance(m, nn.Conv2d))
    before = convolution.weight.stride()
    save_model(path, replace(file, metrics={"test_accuracy": 0.9}))
    assert convolution.weight.stride() == before
    assert load_model(path).metrics == {"test_accuracy": 0.9}
