"""Temperature, ECE, thresholds and energy, held against scipy, numpy and slow loops; and what a run stores of them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from convlens import Data, Predictor, Recipe, Run, load, operating
from convlens.calibration import (
    BOUNDS,
    LEAST,
    Calibration,
    OperatingPoint,
    accuracy_curve,
    calibrate,
    energy,
    expected_error,
    fit_temperature,
    probabilities_of,
    reliability,
)
from convlens.modelfile import golden_difference, load_model
from convlens.recipe import DataConfig, ModelConfig
from convlens.recipes import get_recipe
from refusals import refused
from runs import fit_undrawn


def answers(n: int, k: int, temperature: float, seed: int) -> tuple[Tensor, Tensor]:
    """Labels drawn from softmax(z), and logits z * temperature: the temperature is the one to be found."""
    generator = torch.Generator().manual_seed(seed)
    honest = 2 * torch.randn(n, k, generator=generator)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator).flatten()
    return honest * temperature, labels


# The temperature ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("n", "k"), [(100, 2), (400, 10), (2000, 100)])
@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 6.0])
def test_temperature_against_scipy(n: int, k: int, true: float, seed: int) -> None:
    logits, labels = answers(n, k, true, seed)
    z, y = logits.double().numpy(), labels.numpy()

    def loss(log_temperature: float) -> float:
        return -log_softmax(z / np.exp(log_temperature), axis=1)[np.arange(n), y].mean()

    best = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-9})
    got = fit_temperature(logits, labels)
    assert got == pytest.approx(np.exp(best.x), rel=1e-6)
    assert loss(np.log(got)) <= best.fun + 1e-12
    if n == 2000:
        assert got == pytest.approx(true, rel=0.1)


def test_temperature_of_extreme_logits_stays_within_its_bounds() -> None:
    labels = torch.tensor([0, 1] * 100)
    sure = torch.tensor([[1e4, 0.0], [0.0, 1e4]]).repeat(100, 1)
    least, most = (pytest.approx(bound, rel=1e-9) for bound in BOUNDS)
    assert fit_temperature(sure / 1e4, labels) == least  # all right
    assert fit_temperature(sure, labels) == most  # so sure of it that any temperature gives a loss of 0
    assert fit_temperature(sure, 1 - labels) == most  # all wrong
    assert fit_temperature(sure, torch.tensor([0, 1] * 60 + [1, 0] * 40)) == most  # 60 % right: needs 1e4 / log(1.5)
    shifted = fit_temperature(torch.tensor([[1e6 + 3, 1e6]]).repeat(200, 1), torch.tensor([0] * 150 + [1] * 50))
    assert shifted == pytest.approx(3 / np.log(3), rel=1e-6)  # odds of 3 to 1, by hand


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probabilities_energy_and_loss_against_scipy_and_scikit_learn(temperature: float) -> None:
    logits, labels = answers(300, 7, 2.0, 5)
    z = logits.double().numpy() / temperature
    expected = softmax(z, axis=1)
    np.testing.assert_allclose(probabilities_of(logits, temperature).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(energy(logits, temperature).numpy(), -temperature * logsumexp(z, axis=1), rtol=1e-12)
    found = reliability(logits, labels, temperature)
    assert found["loss_calibrated"] == pytest.approx(log_loss(labels, expected), rel=1e-9)
    assert found["loss"] == pytest.approx(log_loss(labels, softmax(logits.double().numpy(), axis=1)), rel=1e-9)
    right = expected.argmax(1) == labels.numpy()
    assert found["ece_calibrated"] == pytest.approx(slow_ece(expected.max(1), right), abs=1e-12)
    assert found["ece"] == pytest.approx(slow_ece(softmax(logits.double().numpy(), axis=1).max(1), right), abs=1e-12)


# ECE ------------------------------------------------------------------------------------------------------------


def slow_ece(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """As the paper defines it, bin m holding the confidences in ((m-1)/M, m/M]."""
    total, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in itertools.pairwise(edges):
        members = [i for i, c in enumerate(confidence) if low < c <= high]
        if members:
            accuracy = sum(bool(right[i]) for i in members) / len(members)
            mean = sum(float(confidence[i]) for i in members) / len(members)
            total += len(members) / len(confidence) * abs(accuracy - mean)
    return total


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.floats(0.01, 1), st.integers(1, 15)), st.booleans()), min_size=1, max_size=60))
def test_ece_against_a_slow_loop(pairs: list[tuple[float, bool]]) -> None:
    edges = np.linspace(0, 1, 16)  # a whole number stands for a confidence that lies on an edge
    confidence = np.array([edges[c] if isinstance(c, int) else c for c, _ in pairs])
    right = np.array([r for _, r in pairs])
    got = expected_error(torch.from_numpy(confidence), torch.from_numpy(right))
    assert got == pytest.approx(slow_ece(confidence, right), abs=1e-12)


def test_ece_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.5, 0.5], dtype=torch.float64)
    right = torch.tensor([True, True, True, False, True, False])
    assert expected_error(confidence, right) == pytest.approx(4 / 6 * 0.15)


# Thresholds -----------------------------------------------------------------------------------------------------


def slow_choice(confidence: np.ndarray, right: np.ndarray, target: float) -> tuple[float, float, float] | None:
    """The smallest confidence such that answers at or above it are right often enough; accuracy and coverage there."""
    for threshold in sorted(set(confidence.tolist())):
        kept = [bool(r) for c, r in zip(confidence, right, strict=True) if c >= threshold]
        if sum(kept) / len(kept) >= target:
            return threshold, sum(kept) / len(kept), len(kept) / len(confidence)
    return None


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=60),
    st.one_of(st.floats(0, 1), st.sampled_from([0.5, 0.75, 0.9, 1.0])),
)
def test_the_chosen_threshold_against_a_slow_loop(pairs: list[tuple[int, bool]], target: float) -> None:
    confidence, right = np.array([c / 20 for c, _ in pairs]), np.array([r for _, r in pairs])
    curve = accuracy_curve(torch.from_numpy(confidence), torch.from_numpy(right))
    heights = [point.accuracy for point in curve]
    assert heights == sorted(set(heights))
    assert curve[0] == OperatingPoint(0, right.mean(), 1)
    calibration, expected = Calibration(images=LEAST, curve=curve), slow_choice(confidence, right, target)
    if expected is None:
        refused(lambda: calibration.reaching(target), f"{target:g}")
        return
    found = calibration.reaching(target)
    assert (found.accuracy, found.coverage) == pytest.approx(expected[1:], abs=1e-12)
    assert found.threshold <= expected[0]  # half way down to the surest answer that is left out
    assert sorted(confidence[confidence >= found.threshold]) == sorted(confidence[confidence >= expected[0]])


def test_a_threshold_lies_between_neighbours_in_floating_point() -> None:
    high = 1 - 2.0**-53
    confidence = torch.tensor([0.5, np.nextafter(high, 0), high], dtype=torch.float64)
    curve = accuracy_curve(confidence, torch.tensor([True, False, True]))
    assert [int((confidence >= point.threshold).sum()) for point in curve] == [3, 1]


def test_a_long_curve_is_thinned_and_still_keeps_its_word() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(20_000, generator=generator, dtype=torch.float64)
    right = torch.rand(20_000, generator=generator) < confidence  # honest, so that accuracy rises with every mistake
    whole, thin = (accuracy_curve(confidence, right, points) for points in (100_000, 200))
    assert len(whole) > 1000
    assert len(thin) == 200
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
    assert set(thin) <= set(whole)
    for target in np.linspace(0.5, 0.99, 30):
        exact, near = (Calibration(1.0, 20_000, (0.0, 0.0), curve).reaching(target) for curve in (whole, thin))
        assert near.accuracy >= target
        assert 0 <= exact.coverage - near.coverage < 0.05
    assert len(json.dumps(Calibration(1.0, 20_000, (0.0, 0.0), thin).to_dict())) < 15_000


def test_what_cannot_be_promised_is_said() -> None:
    confidence = torch.arange(1, 101).double() / 100
    curve = accuracy_curve(confidence, torch.arange(100) % 10 != 9)  # the surest of all is wrong
    text = refused(
        lambda: Calibration(1.0, 100, (0.0, 0.0), curve).reaching(0.95), "accuracy of 0.95", "100 validation"
    )
    assert "the best is 0.9, with 100.0% of them" in text
    refused(lambda: Calibration().reaching(0.5), "no validation images", "data.val", "choose a threshold yourself")
    refused(lambda: Calibration(images=99).reaching(0.5), "99 validation images", f"{LEAST} are needed")


# All of it ------------------------------------------------------------------------------------------------------


def test_calibration_of_too_few_images_of_perfect_ones_and_of_usual_ones() -> None:
    logits, labels = answers(LEAST, 5, 2.0, 1)
    assert calibrate(logits[1:], labels[1:]) == Calibration(images=LEAST - 1)
    assert f"{LEAST - 1} validation images" in calibrate(logits[1:], labels[1:]).note
    assert "no validation images" in Calibration().note

    usual = calibrate(logits, labels)
    assert usual.note == ""
    assert usual.temperature == fit_temperature(logits, labels) != 1
    energies = energy(logits, usual.temperature).numpy()
    assert usual.usual == pytest.approx(np.percentile(energies, [1, 95]), rel=1e-12)
    assert ((energies < usual.usual[0]).sum(), (energies > usual.usual[1]).sum()) == (1, 5)

    perfect = calibrate(logits, logits.argmax(1))
    assert perfect.temperature == 1
    assert "all 100 validation images are right" in perfect.note
    assert perfect.curve == (OperatingPoint(0, 1, 1),)


def test_calibration_comes_back_from_json() -> None:
    for made in (Calibration(), Calibration(images=7), calibrate(*answers(500, 10, 1.7, 3))):
        assert Calibration.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made


RECIPE = Recipe(epochs=3, batch_size=64, model=ModelConfig("vgg", args={"widths": [8, 16], "convs": 1}), device="cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return load("mnist-5k", RECIPE, limit=1500)


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_undrawn(RECIPE, data, tmp_path_factory.mktemp("runs"))


def test_a_run_stores_the_calibration_of_the_weights_that_it_keeps(run: Run, data: Data) -> None:
    file, stored = run.model_file(), run.metrics["calibration"]
    assert data.val is not None
    with torch.no_grad():
        val, test = file.model(data.val.images), file.model(data.test.images)
    temperature = fit_temperature(val, data.val.labels)
    assert file.manifest.calibration.temperature == pytest.approx(temperature, rel=1e-4)
    assert temperature != 1
    assert (stored["temperature"], stored["note"]) == (file.manifest.calibration.temperature, "")
    for name, logits, split in (("val", val, data.val), ("test", test, data.test)):
        expected = reliability(logits, split.labels, temperature)
        assert stored[name] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert stored["val"]["loss_calibrated"] <= stored["val"]["loss"]
    assert stored["test"]["loss"] == pytest.approx(run.metrics["test"]["loss"])  # the raw one, as ever

    confidence = probabilities_of(val, temperature).amax(1).numpy()
    right = (val.argmax(1) == data.val.labels).numpy()
    target = min((right.mean() + 1) / 2, 0.99)
    expected_choice = slow_choice(confidence, right, target)
    found = file.manifest.calibration.reaching(target)
    assert expected_choice is not None
    assert (found.accuracy, found.coverage) == pytest.approx(expected_choice[1:])


def test_golden_logits_and_the_model_stay_raw(run: Run, data: Data) -> None:
    file = load_model(run.path / "model.safetensors")
    assert golden_difference(file) < 1e-5
    predictor = Predictor.load(run.path)
    images = data.test.images[:20]
    with torch.no_grad():
        raw = file.model(images)
    assert np.array_equal(predictor.logits(images.numpy()), raw.numpy())
    expected = softmax(raw.double().numpy() / file.manifest.calibration.temperature, axis=1)
    np.testing.assert_allclose(predictor.probabilities(images.numpy()), expected, rtol=1e-12)
    rows = [line.split(",") for line in (run.path / "predictions.csv").read_text().splitlines()[1:21]]
    np.testing.assert_allclose([[float(p) for p in row[4:]] for row in rows], expected, atol=1e-5)


def test_a_run_without_a_validation_split_says_so(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, data=DataConfig(val=0.0))
    run = fit_undrawn(recipe, load("mnist-5k", recipe, limit=300), tmp_path)
    stored = run.metrics["calibration"]
    assert stored["temperature"] == 1
    assert "no validation images" in stored["note"]
    assert set(stored) == {"temperature", "note", "test"}
    assert stored["test"]["ece"] == stored["test"]["ece_calibrated"]
    assert run.model_file().manifest.calibration == Calibration()


def unlike(images: Tensor) -> dict[str, Tensor]:
    """Pictures that are no digits, or digits in other colours."""
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"noise": noise, "black": torch.zeros_like(images), "dark on white": 255 - images}


def test_energy_tells_noise_and_blank_images_from_digits(tmp_path: Path) -> None:
    """With the articles' LeNet-5; also dark digits on white, of which it has seen none."""
    recipe = get_recipe("lenet5-mnist").override({"epochs": 2, "device": "cpu", "data.val": 0.1})
    digits = load("mnist-5k", recipe, limit=3000)
    predictor = Predictor.load(fit_undrawn(recipe, digits, tmp_path).path)
    temperature = predictor.manifest.calibration.temperature
    usual = operating.energy(predictor.logits(digits.test.images.numpy()), temperature)
    for name, pictures in unlike(digits.test.images).items():
        scores = np.concatenate([usual, operating.energy(predictor.logits(pictures.numpy()), temperature)])
        assert roc_auc_score([0] * len(usual) + [1] * len(usual), scores) > 0.8, name


def test_noise_is_unusual_also_to_a_network_that_is_surer_of_it_than_of_digits(run: Run, data: Data) -> None:
    predictor = Predictor.load(run.path)
    low, high = predictor.manifest.calibration.usual

    def unusual(images: Tensor) -> float:
        energies = operating.energy(predictor.logits(images.numpy()), predictor.manifest.calibration.temperature)
        return ((energies < low) | (energies > high)).mean()

    noise = unlike(data.test.images)["noise"]
    sure, usual = (
        np.median(operating.energy(predictor.logits(images.numpy()), 1.0)) for images in (noise, data.test.images)
    )
    assert sure < usual, "else this network does not show what is tested"
    assert unusual(noise) > 0.9
    assert unusual(data.test.images) < 0.15
