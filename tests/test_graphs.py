"""Steps as CUDA graphs: when they are recorded, and on a GPU that they train as the steps themselves do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from convlens import Data, InputSpec, Recipe, Split, UserError, make_model, train
from convlens.recipe import AugmentConfig, ModelConfig, OptimConfig
from convlens.training import records

GPU = torch.device("cuda")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


def test_what_is_recorded() -> None:
    """On a GPU only, where the recipe lets it, and no hook of the user's would be silent from the fourth step on."""
    model, recipe = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), Recipe()
    assert records(recipe, model, GPU)
    assert not records(recipe, model, torch.device("cpu"))
    assert not records(replace(recipe, cuda_graph="off"), model, GPU)
    handle = model[0].register_forward_hook(lambda *_: None)
    assert not records(recipe, model, GPU)
    handle.remove()
    assert records(recipe, model, GPU)


@on_a_gpu
@pytest.mark.parametrize(
    ("optimizer", "lr"),  # steps of one size whatever the gradient enlarge rounding: small ones for those
    [("sgd", 0.01), ("adam", 0.001), ("adamw", 0.001), ("rmsprop", 0.001), ("muon", 0.01)],
)
def test_recorded_steps_train_as_the_steps_do(optimizer: str, lr: float) -> None:
    recipe = Recipe(
        epochs=2,
        batch_size=16,
        device="cuda",
        precision="fp32",
        model=ModelConfig("vgg", args={"widths": [8, 16]}),
        optim=OptimConfig(optimizer, lr=lr, schedule="one-cycle", clip=1.0),
        augment=AugmentConfig(shift=1),
    )
    losses, weights = zip(*(trained(replace(recipe, cuda_graph=way)) for way in ("auto", "off")), strict=True)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    # Not weight by weight: where a gradient is nothing but rounding, Adam still takes whole steps
    moved = weights[1] - weights_of(make_model(recipe, small()))
    assert (weights[0] - weights[1]).norm() < 0.1 * moved.norm()


@on_a_gpu
def test_a_step_that_waits_for_the_gpu_is_refused_with_its_remedy() -> None:
    class Waits(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * (1.0 if images.sum().item() > -1 else 0.0)

    data, recipe = (
        small(),
        Recipe(epochs=2, batch_size=16, device="cuda", model=ModelConfig("vgg", args={"widths": [8]})),
    )
    model = nn.Sequential(*make_model(recipe, data), Waits().cuda())
    with pytest.raises(UserError, match=r"cannot be recorded as a CUDA graph .*: --set cuda_graph=off"):
        list(train(model, data, recipe))
    assert len(list(train(model, data, replace(recipe, cuda_graph="off")))) == 2


@on_a_gpu
def test_a_model_may_be_moved_between_epochs() -> None:
    data, recipe = (
        small(),
        Recipe(epochs=4, batch_size=16, device="cuda", model=ModelConfig("vgg", args={"widths": [8]})),
    )
    model, before = make_model(recipe, data), torch.zeros(0)
    for epoch in train(model, data, recipe):
        weights = weights_of(model)
        assert epoch.index == 1 or not torch.equal(weights, before)
        before = weights
        model.cpu(), model.cuda()


def trained(recipe: Recipe) -> tuple[list[float], Tensor]:
    data = small()
    model = make_model(recipe, data)
    losses = [epoch.loss for epoch in train(model, data, recipe)]
    return losses, weights_of(model)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def small() -> Data:
    """Random images; the last batch of an epoch is a smaller one, which is never recorded in two epochs."""
    images = torch.randint(0, 256, (100, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    split = Split(images, torch.arange(100) % 3, torch.arange(100))
    return Data("noise", ("a", "b", "c"), InputSpec((12, 12), 1), (0.5,), (0.3,), True, "", split, None, split)
