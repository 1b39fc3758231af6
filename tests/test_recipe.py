"""recipe: strict about what it is given, and the same after a round trip through a file."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens.errors import USAGE, nearest, unknown
from convlens.recipe import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    parse_setting,
)
from convlens.recipes import RECIPES, get_recipe
from refusals import refused


def test_frozen() -> None:
    recipe = Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.optim.lr = 0.3  # type: ignore[misc]


def test_override_leaves_the_recipe_as_it_was() -> None:
    recipe = RECIPES["quick"]
    before = recipe.to_toml()
    other = recipe.override({"model.args.widths": [1, 2], "optim.lr": 0.5, "optim.step_at": [0.1]})
    assert other.model.args == {"widths": [1, 2], "convs": 1}
    assert recipe.to_toml() == before


# Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_a_file(tmp_path: Path, name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe.note
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(path) == recipe
    assert get_recipe(str(path)) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SHARE = st.floats(0, 1)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def recipes() -> st.SearchStrategy[Recipe]:
    optim = st.builds(
        OptimConfig,
        name=st.sampled_from(["sgd", "adam", "adamw", "rmsprop", "muon"]),
        lr=st.floats(0, 1e30) | st.integers(0, 100),
        linear_lr=st.floats(0, 1e30),
        bias_lr=st.floats(0, 1e30),
        momentum=st.floats(0.001, 0.9999),
        nesterov=st.booleans(),
        beta1=st.floats(0, 0.9999),
        beta2=st.floats(0, 0.99999),
        weight_decay=st.floats(0, 1e6),
        decay_all=st.booleans(),
        l1=st.floats(0, 1e6),
        schedule=st.sampled_from(["constant", "step", "cosine", "one-cycle"]),
        warmup=SHARE,
        step_at=st.lists(SHARE, max_size=4),
        freeze=st.lists(SHARE, max_size=4),
        clip=st.floats(0, 1e6),
        ema=st.floats(0, 0.99999),
        step_factor=SHARE,
    )
    return st.builds(
        Recipe,
        name=TEXT,
        note=TEXT,
        epochs=st.integers(0, 100_000),
        batch_size=st.integers(64, 1_000_000),
        accumulate=st.integers(1, 64),
        seed=st.integers(0, 2**32 - 1),
        patience=st.integers(0, 10_000),
        device=TEXT,
        precision=st.sampled_from(["auto", "fp32", "bf16"]),
        compile=st.sampled_from(["auto", "on", "off"]),
        tta=st.sampled_from(["none", "mirror", "mirror-shift"]),
        model=st.builds(
            ModelConfig,
            name=TEXT,
            normalize=st.sampled_from(["dataset", "unit", "signed"]),
            args=st.dictionaries(TEXT, VALUES, max_size=3),
        ),
        optim=optim,
        loss=st.builds(LossConfig, name=st.sampled_from(["cross-entropy", "mse"]), label_smoothing=SHARE),
        augment=st.builds(
            AugmentConfig,
            flip=st.booleans(),
            alternate=st.booleans(),
            shift=st.integers(0, 1024),
            fill=st.sampled_from(["black", "reflect"]),
            cutout=st.integers(0, 1024),
            crop=st.lists(st.integers(1, 1024), max_size=4),
            scale=st.floats(0.01, 1),
            warp=SHARE,
            colour=SHARE,
            tone=SHARE,
            mixup=st.floats(0, 10),
            cutmix=st.floats(0, 10),
        ),
        data=st.builds(
            DataConfig,
            val=st.floats(0.01, 0.9),
            test_each_epoch=st.booleans(),
            balance=st.sampled_from(["none", "sample"]),
        ),
    )


@settings(max_examples=60, deadline=None)
@given(recipe=recipes())
def test_any_recipe_survives_a_file(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(path) == recipe


def test_whole_numbers_stay_whole_and_numbers_may_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("tta = 'mirror'\n[augment]\ncrop = [24, 32]\n[optim]\nname = 'muon'\nbias_lr = 25\nstep_at = [1]\n")
    recipe = Recipe.from_toml(path)
    assert recipe == Recipe(
        tta="mirror", augment=AugmentConfig(crop=[24, 32]), optim=OptimConfig("muon", bias_lr=25.0, step_at=[1.0])
    )
    assert [type(side) for side in recipe.augment.crop] == [int, int]
    path.write_text(recipe.to_toml())
    assert Recipe.from_toml(path) == recipe


def test_a_short_file_is_laid_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\n[optim]\nlr = 1  # a whole number will do\n[model.args]\nwidths = [8, 8]\n")
    recipe = get_recipe(str(path))
    assert recipe == dataclasses.replace(
        Recipe(), epochs=3, optim=OptimConfig(lr=1.0), model=ModelConfig(args={"widths": [8, 8]})
    )
    assert isinstance(recipe.optim.lr, float)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"epochs = \n", "is not TOML", id="no value"),
        pytest.param(b"epochs 3", "is not TOML", id="no equals sign"),
        pytest.param(b"note = '\xff'", "is not TOML", id="not UTF-8"),
        pytest.param(b"epochs = " + b"9" * 5_000, "is not TOML", id="endless number"),
        pytest.param(b"[optim]\nlrr = 1", "unknown recipe key 'optim.lrr'; did you mean 'optim.lr'?", id="misspelt"),
        pytest.param(b"epochs = 'three'", "epochs must be a whole number, not 'three'", id="wrong type"),
        pytest.param(b"[optim]\nlr = nan", "optim.lr must be 0 or more", id="nan"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    refused(lambda: Recipe.from_toml(path), path, words)


def test_no_file(tmp_path: Path) -> None:
    refused(lambda: get_recipe(str(tmp_path / "none.toml")), "cannot read the recipe", tmp_path / "none.toml")
    refused(lambda: Recipe.from_toml(tmp_path), "cannot read the recipe", tmp_path)


def test_recipe_by_name() -> None:
    refused(lambda: get_recipe("lenet-mnist"), "unknown recipe 'lenet-mnist'; did you mean 'lenet5-mnist'?", ".toml")
    refused(lambda: get_recipe("xyz"), "there are: lenet5-mnist, ", "`convlens recipes` lists them")


# Keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_key", "meant"),
    [
        ("optim.lrr", "optim.lr"),
        ("optim.weight-decay", "optim.weight_decay"),
        ("optim.Momentum", "optim.momentum"),
        ("augment.flips", "augment.flip"),
        ("optimm.lr", "optim"),
        ("epoch", "epochs"),
        ("lr", "optim.lr"),  # the right name in the wrong section
        ("momentum", "optim.momentum"),
        ("flip", "augment.flip"),
        ("optim.epochs", "epochs"),
        ("data.label_smoothing", "loss.label_smoothing"),
        ("mixup", "augment.mixup"),
        ("augment.color", "augment.colour"),
    ],
)
def test_misspelt_key(given_key: str, meant: str) -> None:
    section = given_key.split(".")[0] if meant == "optim" else given_key
    refused(lambda: Recipe().override({given_key: 1}), f"unknown recipe key {section!r}; did you mean {meant!r}?")


def test_key_that_is_like_no_other() -> None:
    refused(lambda: Recipe().override({"optim.qqq": 1}), "'optim.qqq'; there are: optim.name, optim.lr, ")
    refused(lambda: Recipe().override({"qqq": 1}), "'qqq'; there are: name, note, epochs, ", ", optim, ")
    refused(lambda: Recipe().override({"": 1}), "unknown recipe key ''")
    refused(lambda: Recipe().override({"optim..lr": 1}), "unknown recipe key 'optim.'")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", 2.0, "epochs must be a whole number, not 2.0"),
        ("epochs", True, "epochs must be a whole number, not True"),
        ("epochs", "3", "epochs must be a whole number, not '3'"),
        ("epochs", -1, "epochs must be 0 to 100000, not -1"),
        ("batch_size", 0, "batch_size must be 1 to 1000000, not 0"),
        ("seed", 2**32, "seed must be 0 to 4294967295"),
        ("name", 3, "name must be a string, not 3"),
        ("precision", "fp16", "did you mean 'bf16'?"),
        ("precision", 16, "precision must be one of auto, fp32, bf16, not 16"),
        ("optim.lr", True, "optim.lr must be a number, not True"),
        ("optim.lr", "fast", "optim.lr must be a number, not 'fast'"),
        ("optim.lr", -0.1, "optim.lr must be 0 or more"),
        ("optim.lr", math.nan, "optim.lr must be 0 or more"),
        ("optim.lr", math.inf, "optim.lr must be 0 or more, but finite, not inf"),
        ("optim.lr", -math.inf, "optim.lr must be 0 or more"),
        ("optim.momentum", 1, "optim.momentum must be 0 to 0.9999, not 1"),
        ("optim.momentum", math.nan, "optim.momentum must be 0 to 0.9999, not nan"),
        ("optim.name", "sdg", "unknown optim.name 'sdg'; did you mean 'sgd'?"),
        ("optim.name", ["sgd"], "optim.name must be one of sgd, adam"),
        ("optim.nesterov", 1, "optim.nesterov must be true or false, not 1"),
        ("optim.nesterov", "true", "optim.nesterov must be true or false"),
        ("optim.step_at", 0.5, "optim.step_at must be a list, not 0.5"),
        ("optim.step_at", ["half"], "optim.step_at must be a list of numbers, not ['half']"),
        ("optim.step_at", [True], "optim.step_at must be a list of numbers"),
        ("optim.step_at", [30, 60], "optim.step_at must be 0 to 1, not 30"),
        ("optim.step_at", [0.5, math.nan], "optim.step_at must be 0 to 1, not nan"),
        ("optim", 0.1, "optim is a section, such as optim.name"),
        ("epochs.lr", 1, "epochs must be a whole number"),
        ("model.args", [1], "model.args must be a table, not [1]"),
        ("data.val", 0.95, "data.val must be 0 to 0.9, not 0.95"),
        ("augment.shift", 1.5, "augment.shift must be a whole number, not 1.5"),
        ("augment.crop", 24, "augment.crop must be a list, not 24"),
        ("augment.crop", [24.0, 32], "augment.crop must be a list of whole numbers, not [24.0, 32]"),
        ("augment.crop", [True], "augment.crop must be a list of whole numbers, not [True]"),
        ("augment.crop", ["24"], "augment.crop must be a list of whole numbers, not ['24']"),
        ("augment.crop", [24, 0], "augment.crop must be 1 to 1024, not 0"),
        ("augment.fill", "white", "unknown augment.fill 'white'; there are: black, reflect"),
        ("augment.scale", 0, "augment.scale must be 0.01 to 1, not 0"),
        ("augment.warp", 1.5, "augment.warp must be 0 to 1, not 1.5"),
        ("augment.colour", -0.1, "augment.colour must be 0 to 1, not -0.1"),
        ("augment.tone", math.nan, "augment.tone must be 0 to 1, not nan"),
        ("augment.mixup", True, "augment.mixup must be a number, not True"),
        ("augment.cutmix", 11, "augment.cutmix must be 0 to 10, not 11"),
        ("optim.linear_lr", -1, "optim.linear_lr must be 0 or more"),
        ("optim.bias_lr", math.inf, "optim.bias_lr must be 0 or more, but finite"),
        ("optim.ema", 1, "optim.ema must be 0 to 0.99999, not 1"),
        ("optim.ema", -0.1, "optim.ema must be 0 to 0.99999, not -0.1"),
        ("optim.clip", -1, "optim.clip must be 0 or more, but finite, not -1"),
        ("optim.clip", math.inf, "optim.clip must be 0 or more, but finite, not inf"),
        ("accumulate", 0, "accumulate must be 1 to 1000000, not 0"),
        ("accumulate", 1.5, "accumulate must be a whole number, not 1.5"),
        ("data.balance", "wieghts", "unknown data.balance 'wieghts'; did you mean 'weights'?"),
        ("data.balance", True, "data.balance must be one of none, weights, sample, not True"),
        ("batch_size", "auto", "batch_size must be a whole number, not 'auto'"),
        ("compile", True, "compile must be one of auto, on, off, not True"),
        ("tta", "miror", "unknown tta 'miror'; did you mean 'mirror'?"),
    ],
)
def test_values_that_do_not_fit(key: str, value: Any, words: str) -> None:
    refused(lambda: Recipe().override({key: value}), words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Recipe(epochs=2.0), "epochs must be a whole number, not 2.0"),
        (lambda: Recipe(seed=-1), "seed must be 0 to 4294967295, not -1"),
        (lambda: Recipe(model="vgg"), "model must be a ModelConfig, not 'vgg'"),
        (lambda: Recipe(optim=OptimConfig(lr=math.nan)), "optim.lr must be 0 or more"),
        (lambda: Recipe(optim=OptimConfig(name="sdg")), "did you mean 'sgd'?"),
        (lambda: Recipe(augment=AugmentConfig(flip=1)), "augment.flip must be true or false, not 1"),
    ],
    ids=["float", "range", "section", "nan", "name", "bool"],
)
def test_python_is_checked_as_strictly_as_a_file(make: Callable[[], Recipe], words: str) -> None:
    refused(make, words)


def test_settings_that_exclude_each_other() -> None:
    plain = Recipe().override({"optim.momentum": 0.0})
    refused(lambda: plain.override({"optim.nesterov": True}), "optim.nesterov needs optim.momentum above 0")
    refused(lambda: Recipe().override({"data.val": 0.0, "patience": 3}), "patience needs a validation split")
    parts = {"batch_size": 8, "accumulate": 9}
    refused(lambda: Recipe().override(parts), "accumulate splits a batch of 8 images: it cannot be 9")
    weighted = {"data.balance": "weights", "loss.name": "mse"}
    refused(lambda: Recipe().override(weighted), "with loss.name=mse take data.balance=sample")


# Overriding -----------------------------------------------------------------------------------------------------


def test_override_with_dotted_keys() -> None:
    recipe = Recipe().override({"optim.lr": 1, "epochs": 3, "augment.flip": True, "optim.step_at": [0.25]})
    assert recipe == Recipe(epochs=3, optim=OptimConfig(lr=1.0, step_at=[0.25]), augment=AugmentConfig(flip=True))
    assert Recipe().override({}) == Recipe()


def test_settings_of_one_call_are_taken_together() -> None:
    """Their order does not matter, although halfway Nesterov would stand without momentum."""
    plain = Recipe().override({"optim.momentum": 0.0, "data.val": 0.0})
    both = {"optim.nesterov": True, "optim.momentum": 0.8, "patience": 2, "data.val": 0.2}
    for order in (both, dict(reversed(both.items()))):
        recipe = plain.override(order)
        assert (recipe.optim.nesterov, recipe.optim.momentum, recipe.patience, recipe.data.val) == (True, 0.8, 2, 0.2)


def test_the_later_of_two_settings_wins() -> None:
    assert Recipe().override({"optim": {"lr": 0.3, "momentum": 0.5}, "optim.lr": 0.4}).optim.lr == 0.4
    recipe = Recipe().override({"optim.lr": 0.4, "optim": {"lr": 0.3}})
    assert recipe.optim.lr == 0.3
    assert recipe.optim.momentum == 0.9


def test_model_args_are_merged() -> None:
    recipe = RECIPES["quick"].override({"model.args.convs": 2, "model.args.dropout": 0.1})
    assert recipe.model.args == {"widths": [16, 32, 64], "convs": 2, "dropout": 0.1}
    assert recipe.override({"model.args": {"convs": 3}}).model.args["widths"] == [16, 32, 64]
    assert recipe.model.name == "vgg"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim.lr=0.1", 0.1),
        ("optim.lr = 1e-3 ", 1e-3),
        ("optim.lr=1", 1),
        ("optim.lr=true", True),
        ("optim.lr=[0.5, 0.75]", [0.5, 0.75]),
        ("optim.lr={a = 1}", {"a": 1}),
        ("optim.lr='1'", "1"),
        ('optim.lr="a\\tb"', "a\tb"),
        ("optim.lr=one-cycle", "one-cycle"),
        ("optim.lr=a=b", "a=b"),
        ("optim.lr=two words ", "two words"),
        ("optim.lr=", ""),
        ("optim.lr=" + "9" * 5_000, "9" * 5_000),
    ],
)
def test_parse_setting(text: str, value: Any) -> None:
    key, parsed = parse_setting(text)
    assert key == "optim.lr"
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["optim.lr", "", "=0.1", "  = 0.1"])
def test_no_setting(text: str) -> None:
    refused(lambda: parse_setting(text), "KEY=VALUE such as optim.lr=0.05", repr(text))


# Errors ---------------------------------------------------------------------------------------------------------


def test_nearest() -> None:
    assert nearest("MNST", ["cifar10", "mnist"]) == "mnist"
    assert nearest("imagenet", ["cifar10", "mnist"]) is None


def test_unknown() -> None:
    error = unknown("data set", "mnst", ["mnist", "cifar10"], "`convlens datasets` lists them.")
    assert str(error) == "unknown data set 'mnst'; did you mean 'mnist'? `convlens datasets` lists them."
    assert str(unknown("colour", "xyz", iter(["red", "blue"]))) == "unknown colour 'xyz'; there are: red, blue."
    assert error.exit_code == USAGE
