"""Ensembles: each member against the same network alone, the whole against the mean of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens import Data, InputSpec, Recipe, attribute, build, make_model, summarize, train
from convlens.anatomy import dissect
from convlens.arithmetic import arithmetic
from convlens.channels import rank_channels, survey
from convlens.embedding import embed
from convlens.errors import UserError
from convlens.explain import in_every_member
from convlens.flops import forward_flops
from convlens.joining import joins
from convlens.models.ensemble import Ensemble, MeanLogits, members_of
from convlens.optim import body_of, freezable, make_optimizer, train_mode
from convlens.recipe import ModelConfig, OptimConfig
from convlens.run import start
from convlens.shortcuts import shortcut
from convlens.splits import Split
from convlens.training import seen_flops
from convlens.trial import run_flops
from convlens.walking import explained, walk

SHAPE: dict[str, Any] = {"channels": 3, "classes": 4, "size": (16, 16)}
SMALL = {"widths": [4, 6], "convs": 1}


def images(count: int, seed: int = 0) -> Tensor:
    drawn = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=torch.channels_last)


def ensemble(members: int = 3, name: str = "vgg", **args: Any) -> nn.Sequential:
    return build(name, **SHAPE, args={**SMALL, **args, "members": members})


def noise(count: int) -> Data:
    split = Split(images(count), torch.arange(count) % 4, torch.arange(count))
    return Data(
        name="noise", classes=("a", "b", "c", "d"), input=InputSpec((16, 16), 3), mean=(0.0,) * 3, std=(1.0,) * 3,
        flip_ok=False, sha256="", train=split, val=None, test=split,
    )  # fmt: skip # a line a field says no more


def test_the_answer_is_the_mean_of_what_the_members_say() -> None:
    model = ensemble().eval()
    alone = [nn.Sequential(model.normalize, member)(images(5)) for member in members_of(model)]
    torch.testing.assert_close(model(images(5)), sum(alone) / 3)
    assert not torch.allclose(alone[0], alone[1])  # each has weights of its own
    assert members_of(alone_model := build("vgg", **SHAPE, args=SMALL)) == [alone_model]


@pytest.mark.parametrize("count", [12, 13, 6])
def test_a_member_learns_from_its_share_as_if_alone(count: int) -> None:
    """Gradients and batch norm's statistics are those of a network that knows nothing of the others."""
    model = ensemble().train()
    before = copy.deepcopy(model)
    labels = torch.arange(count) % 4
    logits = model(images(count))
    F.cross_entropy(logits, labels, label_smoothing=0.1).backward()

    shares = zip(images(count).tensor_split(3), labels.tensor_split(3), members_of(before), strict=True)
    said = []
    for (some, theirs, single), member in zip(shares, members_of(model), strict=True):
        said.append(nn.Sequential(before.normalize, single)(some))
        F.cross_entropy(said[-1], theirs, label_smoothing=0.1).backward()
        for (name, mine), other in zip(member.named_parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)
        for mine, other in zip(member.buffers(), single.buffers(), strict=True):
            assert torch.equal(mine, other)
    assert torch.equal(logits, torch.cat(said))


def test_a_batch_too_small_to_share_teaches_all() -> None:
    """The last batch of an epoch may hold one image."""
    model = ensemble().train()
    logits = model(images(5))
    assert logits.shape == (5, 4)
    torch.testing.assert_close(logits, sum(member(model.normalize(images(5))) for member in members_of(model)) / 3)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_training_an_ensemble_is_training_each_on_its_shares(optimizer: str) -> None:
    """Against a loop of torch over two networks, each with an optimizer of its own; the engine knows of one batch."""
    recipe = Recipe(
        epochs=2, batch_size=8, device="cpu", model=ModelConfig("vgg", args={**SMALL, "members": 2}),
        optim=OptimConfig(optimizer, lr=0.05, momentum=0.6, weight_decay=0.01),
    ).override({"data.val": 0.0})  # fmt: skip # a line a field says no more
    data = noise(20)
    model = ensemble(2)
    singles = [nn.Sequential(model.normalize, copy.deepcopy(member)) for member in members_of(model)]
    optimizers = [make_optimizer(single, recipe.optim) for single in singles]

    def watched(batches: Any, _position: Any) -> Any:
        for some, labels in batches:
            for single, its, x, y in zip(
                singles, optimizers, some.tensor_split(2), labels.tensor_split(2), strict=True
            ):
                its.zero_grad()
                F.cross_entropy(single.train()(x), y).backward()
                its.step()
            yield some, labels

    for epoch in train(model, data, recipe, watch=watched):
        assert epoch.images == 20
    for single, member in zip(singles, members_of(model), strict=True):
        for mine, other in zip(member.state_dict().values(), single[1].state_dict().values(), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("members", [1, 2])
def test_with_a_mirror_the_answer_is_that_for_both_images(members: int) -> None:
    """In training mode there is no mirror: the augmentation has its own."""
    model, plain = ensemble(members, mirror=True), ensemble(members) if members > 1 else None
    given = images(5)
    model.eval()
    single = [nn.Sequential(model.normalize, member) for member in members_of(model)]
    said = [network(view) for network in single for view in (given, given.flip(3))]
    torch.testing.assert_close(model(given), sum(said) / len(said))
    torch.testing.assert_close(model(given), model(given.flip(3)))
    view = shortcut(model)
    assert torch.equal(view(given), model(given))
    if plain:
        plain.load_state_dict(model.state_dict())
        assert not torch.allclose(plain.eval()(given), model(given))
        assert torch.equal(plain.train()(given), model.train()(given))
    alone = forward_flops(build("vgg", **SHAPE, args=SMALL), given)
    assert forward_flops(model, given) == forward_flops(model, given[:1]) == 2 * members * alone


def test_where_a_mirror_makes_images_wrong_there_is_none(tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=8, device="cpu", model=ModelConfig("vgg", args={**SMALL, "mirror": True}))
    data = noise(16)
    assert type(make_model(recipe, data).network) is nn.Sequential
    assert type(make_model(recipe, replace(data, flip_ok=True)).network) is Ensemble
    assert start(recipe, data, tmp_path).recipe.model.args["mirror"] is False
    assert start(recipe, replace(data, flip_ok=True), tmp_path).recipe.model.args["mirror"] is True


def test_looking_inside_shows_the_image_and_counts_its_mirror_image() -> None:
    """Maps, features and fields are those without a mirror; what a channel moves is what it moves through both."""
    model, image = ensemble(2, mirror=True).eval(), images(1)[0]
    plain = ensemble(2).eval()
    plain.load_state_dict(model.state_dict())
    shown, without = dissect(model, image, effects=True), dissect(plain, image, effects=True)
    steps = {step.name: step for step in shown.steps}
    assert list(steps) == ["normalize", "mirror", *(step.name for step in without.steps[1:])]
    for step in without.steps[:-1]:
        assert torch.allclose(steps[step.name].output, step.output, atol=1e-6)
    assert [joined.name for joined in joins(model, image)["mean"].parts] == [
        f"members.{i}.classifier.3" for i in (0, 1)
    ]
    assert steps["members.1.features.0"].sources == ("mirror",)

    best = int(model(image[None]).argmax())
    for step in shown.steps[1:-1]:  # a finite difference through the whole network, of one channel
        if step.kind != "Conv2d":
            continue
        with torch.no_grad():

            def louder(_layer: nn.Module, _given: Any, out: Tensor) -> Tensor:
                return torch.cat([out[:, :1] * 1.01, out[:, 1:]], 1)

            before = model.double()(image[None].double())[0, best]
            handle = model.get_submodule(f"network.{step.name}").register_forward_hook(louder)
            moved = (model(image[None].double())[0, best] - before).item() * 100
            handle.remove()
            model.float()
        assert step.effects is not None
        assert step.effects[0].item() == pytest.approx(moved, rel=0.05, abs=1e-3)

    ranked, ranked_without = rank_channels(model, images(3)), rank_channels(plain, images(3))
    for mine, other in zip(ranked.layers, ranked_without.layers, strict=True):
        assert torch.allclose(mine.maps, other.maps, atol=1e-6)
        assert mine.scores.shape == other.scores.shape
        for one, two in zip(
            (mine.field.rows, mine.field.columns), (other.field.rows, other.field.columns), strict=True
        ):
            assert np.array_equal(one.starts, two.starts)
            assert np.array_equal(one.stops, two.stops)
    assert torch.allclose(embed(model, images(3))[0], embed(plain, images(3))[0], atol=1e-6)
    fields = [[row.receptive_field for row in summarize(each, 3, (16, 16)).rows] for each in (model, plain)]
    assert [fields[0][0], *fields[0][2:]] == fields[1]
    assert survey(model, Split(images(9), torch.zeros(9).long(), torch.arange(9))).layers[0].peaks.shape == (4, 9)
    assert (
        arithmetic(steps["mirror"], 2, 3, 4).value == steps["mirror"].output[2, 3, 4] == steps["mirror"].input[2, 3, 4]
    )
    told = explained(walk(model, image, {}), "mean", 2)
    assert len(told["strongest"]) == 4
    assert told["value"] == pytest.approx(model(image[None])[0, 2].item(), abs=1e-6)


def test_every_member_freezes_and_has_a_last_layer() -> None:
    config = OptimConfig("sgd", lr=0.1, freeze=[0.5])
    model = ensemble(2)
    single = members_of(model)
    (frozen,) = freezable(model, config)
    assert {id(p) for p in frozen} == {id(p) for each in single for p in freezable(each, config)[0]}
    body = {id(p) for p in body_of(model)}
    heads = {name for name, p in model.named_parameters() if id(p) not in body}
    assert heads == {f"network.members.{i}.classifier.{k}" for i in (0, 1) for k in ("3.weight", "3.bias")}
    train_mode(model, only_head=True)
    learning = [name for name, layer in model.named_modules() if layer.training]
    assert learning == ["network", *(f"network.members.{i}.classifier.3" for i in (0, 1))]
    model = ensemble(2, mirror=True)
    given: list[int] = []
    members_of(model)[1].register_forward_pre_hook(lambda _, x: given.append(len(x[0])))
    train_mode(model, only_head=True)
    shortcut(model)(images(12))
    assert model(images(12)).shape == (12, 4)
    assert given == [6, 6]  # its share, and no mirror image, as when all of it learns
    with pytest.raises(UserError, match="2 convolutions that learn, and the last is not frozen"):
        freezable(model, OptimConfig("sgd", lr=0.1, freeze=[0.2, 0.3]))


def test_what_training_computes_has_the_same_bits() -> None:
    for mode in (True, False):
        model = ensemble(2, "speednet", activation="relu").train(mode)
        view = shortcut(copy.deepcopy(model))
        assert torch.equal(view(images(9)), model(images(9)))


def test_arithmetic_is_counted_once_an_image_in_training() -> None:
    """An epoch of two members costs what one of a single network does; an answer costs twice as much."""
    data = noise(16)
    recipe = Recipe(epochs=1, batch_size=8, device="cpu", model=ModelConfig("vgg", args=SMALL))
    assert run_flops(recipe.override({"model.args.members": 2}), data) == run_flops(recipe, data)
    alone = forward_flops(build("vgg", **SHAPE, args=SMALL), images(1))
    assert forward_flops(ensemble(2), images(1)) == 2 * alone


def mine(channels: int, classes: int, size: tuple[int, int], members: str = "none") -> nn.Module:
    linear = nn.Linear(channels * size[0] * size[1], classes)
    return nn.Sequential(nn.Flatten(), nn.Identity() if members == "none" else nn.ReLU(), linear)


def anything(channels: int, classes: int, size: tuple[int, int], **wanted: Any) -> nn.Module:
    return mine(channels, classes, size, str(wanted["members"]))


class Grid(nn.Module):
    """A network of one's own: a layer that gives a number, and a convolution over maps that are learned."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.maps, self.place = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.grid, self.last = nn.Parameter(torch.ones(1, 1, 8, 8)), nn.Linear(4, classes)
        self.heat = Heat()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.maps(x)).mean((2, 3)) * self.place(self.grid).mean((2, 3))
        return self.last(x) / self.heat()


class Heat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return self.log.exp()


def grid(channels: int, classes: int, size: tuple[int, int]) -> nn.Module:  # noqa: ARG001 - every builder has it
    return Grid(channels, classes)


def test_networks_of_ones_own_with_batches_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    model = build("test_ensemble:grid", **SHAPE).eval()
    assert forward_flops(model, images(1)) == 2 * (16 * 16 * 4 * 27 + 8 * 8 * 4 * 9 + 4 * 4)
    assert [len(layer.scores) for layer in rank_channels(model, images(5)).layers] == [5, 1]
    both = build("test_ensemble:grid", **SHAPE, args={"members": 2, "mirror": True}).eval()
    assert [len(layer.scores) for layer in rank_channels(both, images(5)).layers] == [5, 1, 5, 1]


def test_members_are_an_argument_of_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert len(members_of(build("lenet5", channels=1, classes=10, size=(28, 28), args={"members": 4}))) == 4
    one = build("vgg", **SHAPE, args={**SMALL, "members": 1})
    plain = build("vgg", **SHAPE, args=SMALL)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), plain.state_dict().values(), strict=True))
    assert list(one.state_dict()) == list(plain.state_dict())
    for wrong in (0, 17, 2.0, True, "two", [2]):
        with pytest.raises(UserError, match="members must be a whole number from 1 to 16, not "):
            build("vgg", **SHAPE, args={**SMALL, "members": wrong})
    for wrong in (1, "yes", None):
        with pytest.raises(UserError, match="mirror must be true or false, not "):
            build("vgg", **SHAPE, args={**SMALL, "mirror": wrong})
    own = build("test_ensemble:mine", **SHAPE, args={"members": "some"})  # a builder's own argument wins
    assert isinstance(own.network[1], nn.ReLU)
    own = build("test_ensemble:anything", **SHAPE, args={"members": 5})  # as one that takes any
    assert isinstance(own.network[1], nn.ReLU)


def test_a_training_step_counts_the_one_member_that_sees_an_image() -> None:
    single, several = build("vgg", **SHAPE, args=SMALL), ensemble(3, mirror=True)
    assert forward_flops(several, images(1)) == 6 * forward_flops(single, images(1))
    assert seen_flops(several, images(1)) == seen_flops(single, images(1)) == forward_flops(single, images(1))


def test_looking_inside_shows_every_member() -> None:
    model, image = ensemble(2).eval(), images(1)[0]
    steps = dissect(model, image).steps
    assert [step.name for step in steps if step.kind == "Conv2d"] == [
        f"members.{i}.features.{k}" for i in (0, 1) for k in (0, 4)
    ]
    last, logits = steps[-1], model(image[None])[0]
    assert isinstance(last.layer, MeanLogits)
    assert last.input.shape == (2, 4)
    told = explained(walk(model, image, {}), "mean", 3)
    assert told["value"] == pytest.approx(logits[3].item(), abs=1e-6)
    assert [each["input"] for each in told["strongest"]] == pytest.approx(
        sorted(last.input[:, 3].tolist(), key=abs, reverse=True), abs=1e-6
    )
    assert arithmetic(last, 1).value == pytest.approx(logits[1].item(), abs=1e-6)
    features, _ = embed(model, images(3))
    alone = [embed(nn.Sequential(model.normalize, member), images(3))[0] for member in members_of(model)]
    assert torch.equal(features, torch.cat(alone, 1))


def test_grad_cam_sums_the_members_maps() -> None:
    pytest.importorskip("captum")
    model, given = ensemble(2).eval(), images(1)
    (found,) = attribute(model, given, "grad-cam", target=1, against=2)
    assert found.layer == "network.members.*.features.6"
    parts = [
        attribute(model, given, "grad-cam", target=1, against=2, layer=f"members.{i}.features.6")[0] for i in (0, 1)
    ]
    torch.testing.assert_close(found.values, parts[0].values + parts[1].values)
    (again,) = attribute(model, given, "grad-cam", target=1, layer="members.*.features.6")
    (plain,) = attribute(model, given, "grad-cam", target=1)
    assert torch.equal(again.values, plain.values)
    assert (plain.values >= 0).all()
    assert in_every_member(model, "normalize") == ("normalize", ["normalize"])
    assert type(model.network) is Ensemble
