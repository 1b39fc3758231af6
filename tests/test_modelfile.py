"""The model file: what comes back is what was saved, and what is not a model file is refused with a sentence."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from convlens import MODELS, InputSpec, Recipe, build, load
from convlens.errors import UserError
from convlens.manifest import FORMAT, Golden, Manifest
from convlens.modelfile import ModelFile, golden_difference, load_model, save_model, seal_holds
from convlens.operating import Calibration, OperatingPoint
from convlens.run import start
from refusals import refused


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
    manifest = Manifest(name, args, spec, classes, recipe, metrics, calibration)
    return ModelFile(model, manifest, Golden(golden.numpy(), logits.numpy()))


KNOWN = {  # the logits of the first golden images, computed where the files were written
    "model-before-calibration": [
        [-0.212163, -0.057941, -0.171867, -0.413109],
        [-0.121177, -0.016553, -0.213966, -0.475694],
        [-0.272486, -0.100032, -0.132689, -0.339517],
    ],
    "model-2": [
        [-0.401928, -0.08151, -0.087582, -0.289138],
        [-0.281015, -0.020624, -0.136199, -0.375127],
        [-0.2566, 0.010459, -0.193888, -0.38712],
    ],
}
SMALL = InputSpec((12, 14), 3, "fit")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ModelFile, Path]:
    file = make_file("vgg", SMALL, args={"widths": [4, 6], "convs": 1})
    save_model(tmp_path / "model.safetensors", file)
    return file, tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "args"), [*((name, {}) for name in MODELS), ("lenet5", {"members": 3, "mirror": True})]
)
def test_round_trip(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    spec = InputSpec((28, 32), 3)
    file, path = make_file(name, spec, args=args), tmp_path / "model.safetensors"
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
    assert loaded.manifest == file.manifest
    assert isinstance(loaded.manifest.input.size, tuple)
    for name, dtype in (("images", np.uint8), ("logits", np.float32)):
        assert np.array_equal(getattr(loaded.golden, name), getattr(file.golden, name))
        assert getattr(loaded.golden, name).dtype == dtype
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_the_normalisation_is_in_the_file(saved: tuple[ModelFile, Path]) -> None:
    """load_model is not told mean and std; a copy built without them answers otherwise."""
    file, path = saved
    assert str(load_model(path).model.normalize) == "Normalize(mean=[0.3, 0.3, 0.3], std=[0.2, 0.2, 0.2])"
    other = build("vgg", channels=3, classes=4, size=(12, 14), args=file.manifest.args, seed=9).eval()
    with torch.no_grad():
        assert np.abs(other(torch.as_tensor(file.golden.images)).numpy() - file.golden.logits).max() > 1e-3


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
    assert config["classes"] == list(file.manifest.classes)
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
        ({"builder": None}, "is damaged: its config has no 'builder'"),
        ({"input": {"channels": 3}}, r"is damaged: its input size is not \[height, width\], each from 1 to 4096"),
        ({"input": {"size": [8, 8], "channels": 3, "colour": 1}}, "has keys other than size, channels, resize"),
        ({"classes": None}, "is damaged: its config has no 'classes'"),
        ({"classes": ["a", "b"]}, r"its golden\.logits are float32 \(3, 4\), not float32 \(3, 2\)"),
        ({"args": {"widths": [4, 7], "convs": 1}}, r"the weights in .* do not fit the network vgg that it names"),
        ({"builder": "resnet20", "args": {}}, r"the weights in .* do not fit the network resnet20 that it names"),
        ({"builder": "vgh"}, r"unknown model 'vgh'; did you mean 'vgg'\?"),
        ({"input": {"size": [2, 2], "channels": 3}}, r"its golden\.images are uint8 \(3, 3, 12, 14\), not uint8"),
        (
            {"args": {"widths": [4, 6, 6, 6]}},
            r"model vgg does not take images of 12 x 14: layer features\.27 \(MaxPool",
        ),
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


# The seal ---------------------------------------------------------------------------------------------------------


def by_hand(data: bytes) -> bool:
    """docs/model-file.md's own words, without safetensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    seal = json.loads(data[8:end])["__metadata__"]["sha256"].encode()
    return hashlib.sha256(data[:end].replace(seal, b"0" * 64) + data[end:]).hexdigest().encode() == seal


def test_the_seal_holds_until_a_single_bit_changes(saved: tuple[ModelFile, Path]) -> None:
    path = saved[1]
    good = path.read_bytes()
    assert seal_holds(path) is True
    assert by_hand(good)
    random = np.random.default_rng(0)
    for place in (*random.integers(0, len(good), 200), len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bad)
        try:
            assert seal_holds(path) is False, place
        except UserError as error:  # where the header is none any more
            assert "is damaged" in str(error)  # noqa: PT017 - one of the two
    path.write_bytes(good)
    assert seal_holds(path) is True


def edited(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    """As somebody does who knows safetensors: tensors and config changed, the rest kept, the seal too."""
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118 - not a dict
    config = json.loads(metadata["config"])
    change(tensors, config)
    metadata["config"] = json.dumps(config, ensure_ascii=False)
    safetensors.torch.save_file(tensors, path, metadata)


@pytest.mark.parametrize("what", ["weight", "mean", "class", "temperature", "golden"])
def test_an_edited_file_loads_and_its_seal_is_broken(what: str, saved: tuple[ModelFile, Path]) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        if what == "weight":
            tensors["model.network.features.0.weight"][0, 0, 0, 0] += 1e-6
        elif what == "mean":
            tensors["model.normalize.shift"] += 0.01
        elif what == "class":
            config["classes"][0] = "a cat"
        elif what == "temperature":
            config["calibration"]["temperature"] = 1.25
        else:
            tensors["golden.images"][0, 0, 0, 0] ^= 1

    edited(saved[1], change)
    load_model(saved[1])
    assert seal_holds(saved[1]) is False


def test_a_seal_that_is_missing_or_nonsense(saved: tuple[ModelFile, Path], tmp_path: Path) -> None:
    path = saved[1]
    for seal in ("", "0", "é", "0" * 64, "z" * 64, "convlens"):
        rewrite(path, {}, sha256=seal)
        assert seal_holds(path) is False
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = {key: value for key, value in opened.metadata().items() if key != "sha256"}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)
    assert seal_holds(path) is False
    for other in (tmp_path / "none", tmp_path):
        refused(partial(seal_holds, other), other)


# Earlier formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "version", "seal"), [("model-before-calibration", "1", None), ("model-2", "2", True)])
def test_a_file_of_every_format_gives_its_logits(name: str, version: str, seal: bool | None) -> None:
    path = Path(__file__).parent / f"{name}.safetensors"
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata()["version"] == version
    file = load_model(path)
    assert seal_holds(path) is seal
    assert file.logits(file.golden.images) == pytest.approx(np.array(KNOWN[name], np.float32), abs=1e-5)
    assert golden_difference(file) < 1e-5


def test_there_is_a_file_of_every_format() -> None:
    assert FORMAT == 2  # a new one: add a file to the test above, and never change the older ones


# What is imported -------------------------------------------------------------------------------------------------


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
    assert loaded.manifest.builder == f"{own}:net"


def test_an_installed_packages_network_is_only_imported_by_name(
    saved: tuple[ModelFile, Path], own: str, tmp_path: Path
) -> None:
    """Whatever is installed offers entry points; a file must not choose among them either."""
    info, mark = tmp_path / "plugin-1.0.dist-info", tmp_path / "imported"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[convlens.models]\nplugged = {own}:net\n", encoding="utf-8")
    rewrite(saved[1], {"builder": "plugged", "args": {}})
    for builder in (None, "vgg", f"{own}:net"):
        refused(partial(load_model, saved[1], builder), "was built by plugged, which is not part of", "-m plugged")
        assert not mark.exists()
    save_model(saved[1], make_file("plugged", SMALL))
    assert golden_difference(load_model(saved[1], "plugged")) == 0
    refused(partial(load_model, saved[1]), "-m plugged")


def test_a_file_that_names_any_module_is_refused_unimported(saved: tuple[ModelFile, Path], own: str) -> None:
    rewrite(saved[1], {"builder": f"{own}:net"})
    with pytest.raises(UserError, match="which is not part of ConvLens"):
        load_model(saved[1])
    assert own not in sys.modules


def test_what_is_frozen_stays_frozen_and_nothing_is_without_values(tmp_path: Path) -> None:
    file, path = make_file("speednet", InputSpec((16, 16), 3)), tmp_path / "m.safetensors"
    save_model(path, file)
    model = load_model(path).model
    wanted = {name: p.requires_grad for name, p in file.model.named_parameters()}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert {False, True} == set(wanted.values())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    for (_, a), (_, b) in zip(model.named_parameters(), file.model.named_parameters(), strict=True):
        assert a.stride() == b.stride()  # the layout that convolutions are fast in


def test_class_names_that_are_not_utf8_come_back(saved: tuple[ModelFile, Path]) -> None:
    file, path = saved
    names = (os.fsdecode(b"caf\xe9"), '😀 \x00 \\ "', "\ud800", "line\nbreak")
    save_model(path, replace(file, manifest=replace(file.manifest, classes=names, recipe={"note": "\udce9"})))
    loaded = load_model(path).manifest
    assert (loaded.classes, loaded.recipe) == (names, {"note": "\udce9"})
    assert seal_holds(path) is True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("a", "b", "c", "a")}, "two of them have one name"),
        ({"classes": ("a", "b", "c")}, "not float32 (3, 3)"),
        ({"metrics": {"loss": float("inf")}}, "not JSON compliant"),
        ({"args": {"when": object()}}, "not JSON serializable"),
        ({"recipe": {"page": "x" * 5 * 2**20}}, "4,194,304 are allowed"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    changes: dict[str, Any], words: str, saved: tuple[ModelFile, Path]
) -> None:
    file, path = saved
    before = path.read_bytes()
    wrong = replace(file, manifest=replace(file.manifest, **changes))
    refused(partial(save_model, path, wrong), f"{path} cannot be written", words)
    assert path.read_bytes() == before


def test_what_could_not_be_saved_in_the_end_is_not_trained(tmp_path: Path) -> None:
    data = load("mnist-5k", Recipe(), limit=100)
    for classes, words in ((("0",) * 10, "two of them have one name"), (("", *data.classes[1:]), "or empty")):
        refused(partial(start, Recipe(), replace(data, classes=classes), tmp_path), "could not be saved", words)
    assert not list(tmp_path.iterdir())


def test_ten_thousand_classes_with_the_longest_names_fit(tmp_path: Path) -> None:
    """255 bytes are what a folder's name may have."""
    file = make_file("vgg", SMALL, args={"widths": [4], "convs": 1})
    names = tuple(f"{i:05}{'é' * 125}" for i in range(10_000))
    model = build("vgg", channels=3, classes=10_000, size=SMALL.size, args=file.manifest.args).eval()
    images = file.golden.images
    with torch.no_grad():
        golden = Golden(images, model(torch.as_tensor(images)).numpy())
    path = tmp_path / "m.safetensors"
    save_model(path, ModelFile(model, replace(file.manifest, classes=names), golden))
    assert load_model(path).manifest.classes == names


def test_saving_does_not_move_the_model_into_another_layout(saved: tuple[ModelFile, Path]) -> None:
    file, path = saved
    convolution = next(m for m in file.model.modules() if isinstance(m, nn.Conv2d))
    before = convolution.weight.stride()
    save_model(path, replace(file, manifest=replace(file.manifest, metrics={"test_accuracy": 0.9})))
    assert convolution.weight.stride() == before
    assert load_model(path).manifest.metrics == {"test_accuracy": 0.9}
