"""The recipes that come with ConvLens: the articles' own training, and ours. A variant is `replace(base, ...)`."""

from __future__ import annotations

from dataclasses import replace

from .errors import unknown
from .recipe import AugmentConfig, DataConfig, LossConfig, ModelConfig, OptimConfig, Recipe

# The articles train on the whole training set, look at the test set after every epoch and keep the last weights.
_AS_THE_ARTICLES = DataConfig(val=0.0, test_each_epoch=True)

LENET5_MNIST = Recipe(
    name="lenet5-mnist",
    note="LeNet-5 (LeCun et al., 1998) as the first article trains it: ReLU and average pooling, plain SGD. "
    "The article leaves the pixel scale open: 0..1, as its kind of tutorial does. "
    "The test set is looked at every epoch, as in the article; nothing is chosen by it.",
    epochs=10,
    batch_size=16,
    model=ModelConfig("lenet5", normalize="unit"),
    optim=OptimConfig("sgd", lr=0.1, momentum=0.0),
    data=_AS_THE_ARTICLES,
)

CNN_MNIST = Recipe(
    name="cnn-mnist",
    note="Two convolutions and two linear layers in five epochs, pixels to -1..1. "
    "The article leaves the activation between its linear layers open: ReLU. "
    "The test set is looked at every epoch, as in the article; nothing is chosen by it.",
    epochs=5,
    batch_size=64,
    model=ModelConfig("cnn-mnist", normalize="signed"),
    optim=OptimConfig("sgd", lr=0.01, momentum=0.9),
    data=_AS_THE_ARTICLES,
)

DEEPCNN_MNIST = Recipe(
    name="deepcnn-mnist",
    note="Three convolutions with dropout 0.3 after each block and between the linear layers, Xavier weights on the "
    "linear layers, Adam. The article shows curves only. "
    "The test set is looked at every epoch, as in the article; nothing is chosen by it.",
    epochs=15,
    batch_size=32,
    model=ModelConfig("deepcnn-mnist", normalize="unit"),
    optim=OptimConfig("adam", lr=0.001),
    data=_AS_THE_ARTICLES,
)

CNN_CIFAR10 = Recipe(
    name="cnn-cifar10",
    note="Two convolutions with dropout 0.3 and 0.5 for ten epochs. The article leaves the activation after the first "
    "linear layer open: ReLU. The test set is looked at every epoch, as in the article; nothing is chosen by it.",
    epochs=10,
    batch_size=32,
    model=ModelConfig("cnn-cifar10", normalize="unit"),
    optim=OptimConfig("sgd", lr=0.001, momentum=0.9),
    data=_AS_THE_ARTICLES,
)

DROPOUT_CIFAR10 = replace(
    CNN_CIFAR10,
    name="dropout-cifar10",
    note="The network and the training of cnn-cifar10 for twenty epochs: with the same seed its first ten epochs are "
    "those of cnn-cifar10. The test set is looked at every epoch, as in the article; nothing is chosen by it.",
    epochs=20,
)

_ONE_CYCLE = OptimConfig(
    "sgd",
    lr=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    decay_all=False,
    schedule="one-cycle",
    warmup=0.25,
)

# What `convlens train DATA` does when nothing else is said: a small batch-norm network, one cycle, a validation split.
QUICK = Recipe(
    name="quick",
    note="A small batch-norm VGG, one-cycle SGD with Nesterov momentum, shifts, and mirroring where it is harmless; "
    "the epoch with the best validation loss is kept and the test set is looked at once.",
    epochs=8,
    batch_size=128,
    model=ModelConfig("vgg", args={"widths": [16, 32, 64], "convs": 1}),
    optim=_ONE_CYCLE,
    augment=AugmentConfig(flip=True, shift=2),
)

RESNET_CIFAR10 = Recipe(
    name="resnet-cifar10",
    note="ResNet-20 with its paper's augmentation (shift by 4, mirror) on a one-cycle schedule.",
    epochs=20,
    batch_size=128,
    model=ModelConfig("resnet20"),
    optim=replace(_ONE_CYCLE, lr=0.4),
    augment=AugmentConfig(flip=True, shift=4),
)

SPEED_MNIST = Recipe(
    name="speed-mnist",
    note="99 % of MNIST in one epoch: three convolutions, one cycle of a high learning rate, a higher one for biases. "
    "Chosen on a validation split (docs/speed.md); trains on all images and looks at the test set once.",
    epochs=1,
    batch_size=256,
    model=ModelConfig(
        "speednet",
        args={
            "widths": [16, 32, 64],
            "convs": 1,
            "whiten": 0,
            "activation": "relu",
            "pool": ["stride", "max", "max"],
            "head": "flat",
        },
    ),
    optim=replace(_ONE_CYCLE, lr=0.6, linear_lr=0.1, bias_lr=2.0, warmup=0.2),
    loss=LossConfig(label_smoothing=0.1),
    data=DataConfig(val=0.0),
)

SPEED_MNIST_995 = replace(
    SPEED_MNIST,
    name="speed-mnist-995",
    note="99.5 % of MNIST: the network of speed-mnist, half as wide again, on images shifted by a pixel. Chosen on a "
    "validation split (docs/speed.md); trains on all images and looks at the test set once.",
    epochs=6,
    model=ModelConfig(
        "speednet",
        args={"widths": [24, 48, 96], "convs": 1, "whiten": 0, "activation": "relu", "head": "flat"},
    ),
    augment=AugmentConfig(shift=1),
)

BEST_MNIST = replace(
    SPEED_MNIST_995,
    name="best-mnist",
    note="As high as one small network goes on MNIST in ten minutes on two cores: two convolutions a width, shifts by "
    "two pixels. Chosen on a validation split (docs/speed.md); looks at the test set once.",
    epochs=20,
    model=ModelConfig("speednet", args={**SPEED_MNIST_995.model.args, "widths": [32, 64, 128], "convs": 2}),
    augment=AugmentConfig(shift=2),
)

# The class of cifar10-airbench (Jordan, arXiv:2404.00498, and airbench94_muon): whitening, Muon, alternating flips.
SPEED_CIFAR10 = Recipe(
    name="speed-cifar10",
    note="The class of airbench94_muon in our engine, for a GPU: a first layer that whitens 3 x 3 pixels and is not "
    "trained, batch norm of low momentum, Muon, alternating flips, test-time augmentation measured beside the plain "
    "accuracy.",
    epochs=8,
    batch_size=2000,
    tta="mirror-shift",
    model=ModelConfig("speednet", args={"whiten": 3, "components": 12, "whiten_bias": False}),
    optim=OptimConfig("muon", lr=0.24, momentum=0.6, linear_lr=0.02, bias_lr=106.0, schedule="one-cycle"),
    loss=LossConfig(label_smoothing=0.2),
    augment=AugmentConfig(flip=True, alternate=True, shift=2, fill="reflect"),
    data=DataConfig(val=0.0),
)

# On a CPU: ReLU, small batches, and a whitening of eight components that is not trained.
_FIRST_LAYER = {"activation": "relu", "whiten": 3, "components": 8, "whiten_bias": False}

SPEED_CIFAR10_70 = replace(
    SPEED_CIFAR10,
    name="speed-cifar10-70",
    note="70 % of CIFAR-10 in one epoch on a CPU: speed-cifar10 with a narrow network, ReLU, small batches. Chosen on "
    "a validation split (docs/speed.md); looks at the test set once.",
    epochs=1,
    batch_size=250,
    tta="none",
    model=ModelConfig("speednet", args={"widths": [16, 48, 96], **_FIRST_LAYER}),
    optim=replace(SPEED_CIFAR10.optim, lr=0.15, linear_lr=0.005, bias_lr=25.0),
)

SPEED_CIFAR10_85 = replace(
    SPEED_CIFAR10_70,
    name="speed-cifar10-85",
    note="85 % of CIFAR-10 on a CPU: speed-cifar10-70 wider and for longer; its first convolutions learn no more when "
    "they have settled. Chosen on a validation split (docs/speed.md); looks at the test set once.",
    epochs=5,
    model=ModelConfig("speednet", args={"widths": [32, 96, 192], **_FIRST_LAYER}),
    optim=replace(SPEED_CIFAR10_70.optim, lr=0.07, freeze=[0.4, 0.6]),
)

SPEED_CIFAR10_90 = replace(
    SPEED_CIFAR10_85,
    name="speed-cifar10-90",
    note="Towards 90 % of CIFAR-10 on a CPU (88.9 % on a copy that went through JPEG): speed-cifar10-85 wider and for "
    "longer. Chosen on a validation split (docs/speed.md); looks at the test set once.",
    epochs=8,
    model=ModelConfig("speednet", args={"widths": [48, 192, 384], **_FIRST_LAYER}),
    optim=replace(SPEED_CIFAR10_85.optim, lr=0.05),
)

# What `convlens train FOLDER` does when nothing else is said.
PHOTOS = replace(
    SPEED_CIFAR10_85,
    name="photos",
    note="For a few thousand photographs of your own: two networks of the speed recipes, one width more, that answer "
    "together for a picture and its mirror image, trained on crops, turns and other colours of the pictures; the epoch "
    "with the best validation loss is kept. Chosen on a validation split of flowers (docs/pictures.md).",
    epochs=45,
    batch_size=128,
    model=ModelConfig(
        "speednet",
        args={
            "widths": [32, 96, 192, 256],
            "pool": ["max", "max", "stride"],
            "members": 2,
            "mirror": True,
            **_FIRST_LAYER,
        },
    ),
    optim=replace(_ONE_CYCLE, name="muon", momentum=0.6, nesterov=False, linear_lr=0.02, bias_lr=0.5, norm_images=512),
    loss=LossConfig(label_smoothing=0.1),
    augment=AugmentConfig(flip=True, scale=0.25, reduce=0.75, warp=0.2, fill="reflect", colour=0.3),
    data=DataConfig(),
)

# For photographs of any size. A level is the whole of a recipe's augmentation.
AUGMENTATIONS = {
    "none": AugmentConfig(),
    "light": AugmentConfig(flip=True, scale=0.6),
    "strong": AugmentConfig(
        flip=True, scale=0.25, warp=0.3, fill="reflect", colour=0.4, tone=0.3, mixup=0.2, cutmix=1.0
    ),
}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        LENET5_MNIST,
        CNN_MNIST,
        DEEPCNN_MNIST,
        CNN_CIFAR10,
        DROPOUT_CIFAR10,
        QUICK,
        PHOTOS,
        RESNET_CIFAR10,
        SPEED_MNIST,
        SPEED_MNIST_995,
        BEST_MNIST,
        SPEED_CIFAR10,
        SPEED_CIFAR10_70,
        SPEED_CIFAR10_85,
        SPEED_CIFAR10_90,
    )
}


def get_augmentation(name: str) -> AugmentConfig:
    """A level of augmentation by name."""
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def get_recipe(name: str) -> Recipe:
    """A recipe by name, or from a TOML file where `name` ends in `.toml`."""
    if name.endswith(".toml"):
        return Recipe.from_toml(name)
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES, "`convlens recipes` lists them; a file is named by its .toml ending.")
    return RECIPES[name]
