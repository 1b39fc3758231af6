"""Pretrained networks of timm and torchvision. Neither can be installed here: small modules of their names and calls
stand in, with real networks and weights that were saved."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens import Data, InputSpec, Recipe, Run, Split, build, train
from convlens.data import batches
from convlens.fitting import advance
from convlens.models.transfer import head_of
from convlens.optim import parameter_groups
from convlens.predict import Predictor
from convlens.recipe import ModelConfig, OptimConfig
from convlens.run import start
from refusals import refused

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NETWORK = '''
import difflib
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

HERE = Path(__file__).parent


class Network(nn.Module):
    """Five classes, dropout before the last layer, an attribute that holds a number of its own."""

    def __init__(self, num_classes, drop_rate=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(8, num_classes)

    def features(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu().mean((2, 3))

    def forward(self, x):
        return self.fc(self.drop(self.features(x)))


def weights():
    """Fetched: whoever reads them leaves a mark."""
    with (HERE / "fetched").open("a") as mark:
        mark.write("x")
    return safetensors.torch.load_file(HERE / "weights.safetensors")
'''

TIMM = """
from standin import Network, nn, weights


class TimmNetwork(Network):
    pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "num_classes": 5, "classifier": "fc"}

    def get_classifier(self):
        return self.fc

    def reset_classifier(self, num_classes):
        self.fc = nn.Linear(8, num_classes)


class TwoHeads(TimmNetwork):
    def get_classifier(self):
        return self.fc, self.fc


class Patches(TimmNetwork):
    def forward(self, x):
        assert x.shape[2] == 224, f"input height {x.shape[2]} does not match the model's 224"
        return super().forward(x)


KINDS = {"resnet18": TimmNetwork, "resnet34": TimmNetwork, "deit_distilled": TwoHeads, "vit_tiny": Patches}


def list_models():
    return list(KINDS)


def create_model(name, pretrained=False, num_classes=1000, **kwargs):
    assert None not in kwargs.values()
    model = KINDS[name.split(".")[0]](num_classes, **kwargs)
    if pretrained:
        state = weights()
        if num_classes != 5:
            state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        model.load_state_dict(state, strict=num_classes == 5)
    return model
"""

TORCHVISION = """
import sys
from types import SimpleNamespace
from standin import Network, nn, weights


class Squeeze(Network):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.fc = nn.Conv2d(8, num_classes, 1)


class Nested(Network):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.fc = nn.Sequential(nn.Dropout(0.2), self.fc)


KINDS = {"resnet18": Network, "nested": Nested, "squeezenet1_0": Squeeze, "googlenet": Network}


def list_models(module=None):
    assert module is sys.modules[__name__]
    return list(KINDS)


def get_model(name, weights=None):
    model = KINDS[name](5)
    if weights == "DEFAULT":
        state = globals()["weights"]()
        if name == "nested":
            state = {key.replace("fc.", "fc.1."): value for key, value in state.items()}
        if name == "squeezenet1_0":
            state["fc.weight"] = state["fc.weight"][:, :, None, None]
        model.load_state_dict(state)
    else:
        assert weights is None
    return model


def get_model_weights(name):
    preset = SimpleNamespace(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: preset))
"""


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Both packages, importable, with weights in a file beside them; gives the module of the network itself."""
    folder = tmp_path / "packages"
    (folder / "torchvision").mkdir(parents=True)
    (folder / "standin.py").write_text(NETWORK)
    (folder / "timm.py").write_text(TIMM)
    (folder / "torchvision" / "__init__.py").write_text("")
    (folder / "torchvision" / "models.py").write_text(TORCHVISION)
    monkeypatch.syspath_prepend(folder)
    names = ("standin", "timm", "torchvision", "torchvision.models")
    for name in names:
        sys.modules.pop(name, None)
    module = importlib.import_module("standin")
    with torch.random.fork_rng():
        torch.manual_seed(8)
        network = module.Network(5)
        network.train()
        network(torch.randn(50, 3, 10, 10))  # running statistics that are not those of a new network
        safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    yield module
    for name in names:
        sys.modules.pop(name, None)


def fetched(standin: ModuleType) -> int:
    mark = standin.HERE / "fetched"
    return len(mark.read_text()) if mark.exists() else 0


def make_data(channels: int = 1) -> Data:
    """Three classes, told apart by which rows are bright."""
    generator = torch.Generator().manual_seed(1)

    def split(n: int) -> Split:
        images = torch.randint(0, 200, (n, channels, 12, 12), dtype=torch.uint8, generator=generator)
        labels = torch.arange(n) % 3
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 4 * label : 4 * label + 4] += 50
        return Split(images, labels, torch.arange(n))

    shape = InputSpec((12, 12), channels)
    stats = (0.4,) * channels
    return Data("rows", ("a", "b", "c"), shape, stats, stats, True, "sha", split(46), split(12), split(12))


def pretrained(standin: ModuleType) -> nn.Module:
    network = standin.Network(5)
    network.load_state_dict(safetensors.torch.load_file(standin.HERE / "weights.safetensors"))
    return network.eval()


def normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    return ((images.expand(-1, 3, -1, -1).double() / 255 - mean) / std).float()


SOURCES = ["timm:resnet18", "timm:resnet18.a1_in1k", "torchvision:resnet18", "torchvision:nested"]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [3, 5])  # five: as many as it was pretrained on
def test_the_pretrained_body_its_own_statistics_and_a_new_head(
    name: str, channels: int, classes: int, standin: ModuleType
) -> None:
    mean = (0.1,) * channels  # of the data set: it has no say
    state = torch.get_rng_state()
    model = build(name, channels=channels, classes=classes, size=(12, 12), mean=mean, std=mean, seed=4).eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert fetched(standin) == 1
    images, reference = make_data(channels).test.images, pretrained(standin)
    head = head_of(model)
    assert isinstance(head, nn.Linear)
    assert head.weight.shape == (classes, 8)
    with torch.no_grad():
        expected = head(reference.features(normalized(images)))
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(images.float()), expected, atol=1e-5, rtol=1e-5)
    if classes == 5:
        assert not torch.equal(head.weight, reference.fc.weight)
    again = build(name, channels=channels, classes=classes, size=(12, 12), seed=4)
    assert torch.equal(head_of(again).weight, head.weight)
    assert str(model.normalize) == "Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])"
    with pytest.raises(ValueError, match=rf"images must be \(N, {channels}, H, W\)"):
        model(images.expand(-1, 3, -1, -1) if channels == 1 else images[:, :1])


def test_arguments(standin: ModuleType) -> None:
    shape: Any = {"channels": 3, "classes": 3, "size": (12, 12)}
    model = build("timm:resnet18", **shape, args={"drop_rate": 0.3, "pretrained": False})
    assert model.network.drop.p == 0.3
    assert not torch.equal(model.network.conv1.weight, pretrained(standin).conv1.weight)
    build("torchvision:resnet18", **shape, pretrained=False)
    assert fetched(standin) == 0
    refused(lambda: build("timm:resnet18", **shape, args={"drop_rat": 0.3}), "did you mean 'drop_rate'?")
    refused(lambda: build("timm:resnet18", **shape, args={"checkpoint_path": "x.pth"}), "unknown argument")
    refused(lambda: build("torchvision:resnet18", **shape, args={"weights": "x"}), "unknown argument")


def test_what_cannot_be_had(standin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    shape: Any = {"channels": 3, "classes": 3, "size": (12, 12)}
    refused(lambda: build("timm:resnet19", **shape), "timm has no network 'resnet19'", "resnet18, resnet34")
    refused(lambda: build("timm:zzz", **shape), "it lists 4, none of them like it")
    refused(lambda: build("torchvision:resnet", **shape), "torchvision has no network 'resnet'", "resnet18")
    refused(lambda: build("timm:deit_distilled", **shape), "more than one last layer")
    refused(lambda: build("torchvision:squeezenet1_0", **shape), "does not end in a linear layer")
    refused(lambda: build("torchvision:googlenet", **shape), "more than one row of logits")
    refused(lambda: build("timm:vit_tiny", **shape), "fails on images of 3 x 12 x 12: input height 12 does not match")
    (standin.HERE / "weights.safetensors").unlink()
    for name in ("timm:resnet18", "torchvision:resnet18"):
        refused(lambda name=name: build(name, **shape), f"weights of {name} could not be fetched", "pretrained=false")
    monkeypatch.setitem(sys.modules, "timm", None)
    refused(
        lambda: build("timm:resnet18", **shape), "networks of timm need timm, and the torchvision", torch.__version__
    )
    sys.modules.pop("torchvision.models")
    (standin.HERE / "torchvision" / "models.py").write_text("raise RuntimeError('operator nms does not exist')")
    importlib.invalidate_caches()
    refused(
        lambda: build("torchvision:nested", **shape), "need the torchvision that was built for torch", "nms does not"
    )


RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    seed=2,
    precision="fp32",
    model=ModelConfig("timm:resnet18"),
    optim=OptimConfig("sgd", 0.05, momentum=0.9, head_epochs=1),
)


def test_a_run_and_its_file_need_the_weights_once(standin: ModuleType, tmp_path: Path) -> None:
    data = make_data()
    run = start(RECIPE, data, tmp_path)
    assert run.path.name == "rows-resnet18-1"
    rows = advance(run, data)
    next(rows)
    rows.close()  # broken off
    (standin.HERE / "weights.safetensors").unlink()
    assert [row["epoch"] for row in advance(run, data)] == [2, 3]
    from convlens.fitting import finish

    finish(run, data, plots=False, report=False)
    file = run.path / "model.safetensors"
    refused(lambda: Predictor.load(file), "if you trust that code, name it: -m timm:resnet18")
    predictor = Predictor.load(file, "timm:resnet18")
    golden = predictor.shipped.golden
    np.testing.assert_allclose(predictor.logits(golden.images), golden.logits, rtol=1e-5, atol=1e-5)
    assert run.metrics["test"]["accuracy"] == (
        (predictor.probabilities(data.test.images).argmax(1) == data.test.labels.numpy()).mean()
    )


def body(model: nn.Module) -> list[Tensor]:
    """Everything but the last layer, statistics of norms among it."""
    head = {id(p) for p in head_of(model).parameters()}
    return [value.clone() for value in model.state_dict(keep_vars=True).values() if id(value) not in head]


def same(one: list[Tensor], other: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def make_model(name: str = "timm:resnet18", **args: Any) -> nn.Module:
    return build(name, channels=1, classes=3, size=(12, 12), args=args, seed=2)


def test_first_the_head_learns_then_all(standin: ModuleType) -> None:
    """One epoch is logistic regression on the pretrained features, held against a loop on those; then all moves."""
    data, model = make_data(), make_model(drop_rate=0.5)  # which only acts where the body trains
    start, reference = body(model), make_model()
    head = head_of(reference)
    optimizer = torch.optim.SGD(head.parameters(), 0.05, momentum=0.9)
    features = pretrained(standin).features
    for epoch in train(model, data, RECIPE):
        now = body(model)
        if epoch.index == 1:
            assert all(same(now, start))
            losses = []
            for images, labels in batches(data.train, 8, RECIPE.augment, 2, 1):
                loss = F.cross_entropy(head(features(normalized(images)).detach()), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item() * len(labels))
            assert epoch.loss == pytest.approx(sum(losses) / 46, rel=1e-4)
            torch.testing.assert_close(head_of(model).weight, head.weight, atol=1e-5, rtol=1e-4)
            assert [p.requires_grad for p in model.parameters()].count(True) == 2
        if epoch.index == 2:
            assert same(now, start) == [True] * 2 + [False] * (len(now) - 2)  # the normalisation's own two
            assert model.training
            assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.usefixtures("standin")
def test_broken_off_in_the_head_epochs_nothing_stays_frozen() -> None:
    model = make_model()
    learned = next(model.parameters()).requires_grad_(False)  # the user's own choice stays
    for _ in train(model, make_data(), RECIPE):
        break
    assert not learned.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not learned)


@pytest.mark.usefixtures("standin")
def test_with_frozen_convolutions_behind_it() -> None:
    recipe = replace(RECIPE, optim=replace(RECIPE.optim, freeze=[0.0]))
    model = make_model()
    first, second = (m.weight.detach().clone() for m in model.modules() if isinstance(m, nn.Conv2d))
    for epoch in train(model, make_data(), recipe):
        one, two = (m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
        assert torch.equal(one, first)
        assert torch.equal(two, second) is (epoch.index == 1)


@pytest.mark.usefixtures("standin")
def test_a_body_with_a_rate_of_its_own() -> None:
    config = OptimConfig("sgd", 0.1, bias_lr=0.3, weight_decay=0.01, decay_all=False, body_lr=0.001)
    model = make_model()
    groups = parameter_groups(model, config)
    network = model.network
    assert [group["peak"] for group in groups] == [0.001, 0.001, 0.1, 0.3]
    assert [group["weight_decay"] for group in groups] == [0.01, 0, 0.01, 0]
    assert [group["filters"] for group in groups] == [True, False, False, False]
    expected = [
        [network.conv1.weight, network.conv2.weight],
        [network.bn1.weight, network.bn1.bias, network.bn2.weight, network.bn2.bias],
        [network.fc.weight],
        [network.fc.bias],
    ]
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(p) for p in part] for part in expected]


def test_at_the_terminal(standin: ModuleType, tmp_path: Path, convlens: Any) -> None:
    flags = (
        "--limit",
        "300",
        "--epochs",
        "2",
        "-m",
        "timm:resnet18",
        "--set",
        "optim.head_epochs=1",
        "--no-plots",
        "--no-report",
    )
    result = convlens("train", "mnist-5k", *flags, "--out", tmp_path, "--name", "run")
    assert result.returncode == 0, result.stderr
    assert "-m timm:resnet18" in result.stderr
    assert Run.open(tmp_path / "run").recipe.optim.head_epochs == 1
    (standin.HERE / "weights.safetensors").unlink()
    assert convlens("evaluate", tmp_path / "run", "-m", "timm:resnet18").returncode == 0
    assert "conv2" in convlens("summary", "timm:resnet18").stdout
    assert convlens("evaluate", tmp_path / "run").returncode == 2
    result = convlens("train", "mnist-5k", "-m", "timm:resnet19", cwd=tmp_path)
    assert "the nearest are resnet18, resnet34" in result.stderr
