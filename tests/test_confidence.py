"""Confidence against accuracy: bins and curves against slow loops and scikit-learn, figures against the bins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from sklearn.calibration import calibration_curve
from torch import Tensor

from convlens import trustplots
from convlens.calibration import expected_error, probabilities_of
from convlens.confidence import Trust, coverage_curve, reliability_bins, trust
from convlens.robust import Robustness, Withstood


def answers(n: int, k: int = 5, sure: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=draws)
    logits = torch.randn(n, k, generator=draws) * sure
    logits[torch.arange(n), labels] += sure
    return logits, labels


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_bins_are_scikit_learns_and_a_slow_loops(bins: int) -> None:
    logits, labels = answers(500)
    confidence, right = probabilities_of(logits, 1.0).amax(1), logits.argmax(1) == labels
    confidence[:3] = torch.tensor([1 / 3, 0.2, 1.0])  # on edges
    found = reliability_bins(confidence, right, bins)
    for i, each in enumerate(found):
        mine = [(p, r) for p, r in zip(confidence.tolist(), right.tolist(), strict=True) if each.low < p <= each.high]
        assert (each.low, each.high) == pytest.approx((i / bins, (i + 1) / bins))
        assert (each.right, each.wrong) == (sum(r for _, r in mine), sum(not r for _, r in mine))
        if mine:
            assert each.confidence == pytest.approx(sum(p for p, _ in mine) / len(mine))
            assert each.accuracy == each.right / len(mine)
        else:
            assert each.confidence is None
            assert each.accuracy is None
    true, mean = calibration_curve(right.numpy(), confidence.numpy(), n_bins=bins, strategy="uniform")
    full = [each for each in found if each.accuracy is not None]
    assert [each.accuracy for each in full] == pytest.approx(true.tolist())
    assert [each.confidence for each in full] == pytest.approx(mean.tolist())
    error = sum((e.right + e.wrong) * abs(e.accuracy - e.confidence) for e in full) / 500  # type: ignore[operator]
    assert error == pytest.approx(expected_error(confidence, right, bins))


def test_the_coverage_curve_is_a_slow_loop() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.9, 0.7, 0.6, 0.5], dtype=torch.float64)
    right = torch.tensor([True, False, False, True, True, True])
    found = coverage_curve(confidence, right)
    assert [point.threshold for point in found] == [0.5, 0.6, 0.7, 0.9]
    for point in found:
        kept = [r for p, r in zip(confidence.tolist(), right.tolist(), strict=True) if p >= point.threshold]
        assert point.coverage == pytest.approx(len(kept) / 6)
        assert point.accuracy == pytest.approx(sum(kept) / len(kept))


def test_a_long_curve_keeps_its_ends_and_is_spread_evenly() -> None:
    confidence = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 0.02  # near 1
    right = torch.rand(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) < confidence
    every, found = coverage_curve(confidence, right, 10_000), coverage_curve(confidence, right, 100)
    assert len(every) == 5000
    assert len(found) == 100
    assert set(found) <= set(every)
    assert (found[0], found[-1]) == (every[0], every[-1])
    assert found[0].coverage == 1
    steps = np.diff([point.coverage for point in found])
    assert (steps < 0).all()
    assert np.abs(steps + 1 / 99).max() < 0.002


def test_trust_has_both_temperatures_and_becomes_json() -> None:
    logits, labels = answers(400, sure=4.0)
    found = trust(logits, labels, 2.5)
    raw, calibrated = (probabilities_of(logits, t).amax(1) for t in (1.0, 2.5))
    right = logits.argmax(1) == labels
    assert found.ece == expected_error(raw, right)
    assert found.ece_calibrated == expected_error(calibrated, right)
    assert found.bins == reliability_bins(raw, right)
    assert found.calibrated == reliability_bins(calibrated, right) != found.bins
    assert found.coverage == coverage_curve(calibrated, right)
    loaded = json.loads(json.dumps(found.to_dict()))
    assert loaded["calibrated"][-1]["accuracy"] == found.calibrated[-1].accuracy
    assert loaded["coverage"][0] == [found.coverage[0].threshold, right.double().mean().item(), 1.0]


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): list(map(tuple, line.get_xydata())) for line in axes.get_lines()}  # type: ignore[arg-type,misc]


ROBUST = Robustness(
    90,
    100,
    0.95,
    tuple(Withstood(name, (1.0,) * 5, (0.9, 0.8, 0.7, 0.6, 0.1 * i)) for i, name in enumerate("abcdefgh")),
)


def test_the_figures_show_the_numbers() -> None:
    found = trust(*answers(300), 1.7)
    drawn = lines(trustplots.reliability(found))
    for bins, start in ((found.bins, "as trained"), (found.calibrated, "temperature 1.7")):
        (points,) = (values for label, values in drawn.items() if label.startswith(start))
        assert points == [(b.confidence, b.accuracy) for b in bins if b.accuracy is not None]
    bars = [bar.get_height() for bar in trustplots.histogram(found).patches]
    assert bars == [b.right for b in found.calibrated] + [b.wrong for b in found.calibrated]
    curve = next(iter(lines(trustplots.coverage(found.coverage)).values()))
    assert curve == [(p.coverage, p.accuracy) for p in found.coverage]
    curves = lines(trustplots.corruptions(ROBUST))
    assert len(curves) == 8
    assert [label.split()[0] for label in curves] == [*"hgfedcba"]  # the best first
    assert curves["c (64.0%)"] == list(zip(range(6), (0.95, 0.9, 0.8, 0.7, 0.6, 0.2), strict=True))


def test_eight_corruptions_are_told_apart_without_colour() -> None:
    styles = {(line.get_marker(), line.get_linestyle()) for line in trustplots.corruptions(ROBUST).get_lines()}
    assert len(styles) == 8


@pytest.mark.parametrize(
    "found",
    [
        trust(*answers(300), 1.7),
        trust(*answers(300)),
        trust(torch.eye(3) * 50, torch.arange(3)),
        trust(torch.eye(3) * 50, torch.tensor([1, 2, 0]), 3.0),
        trust(torch.tensor([[2.0, 1.0]]), torch.tensor([0])),
    ],
    ids=["usual", "no-temperature", "all-right", "all-wrong", "one-image"],
)
def test_every_split_can_be_drawn(found: Trust, tmp_path: Path) -> None:
    files = trustplots.draw_trust(tmp_path / "new", found, ROBUST)
    assert {path.name for path in files} == {"reliability.png", "confidence.png", "coverage.png", "corruptions.png"}
    for path in files:
        with Image.open(path) as picture:
            assert min(picture.size) > 300


def test_without_corruptions_they_are_not_drawn(tmp_path: Path) -> None:
    files = trustplots.draw_trust(tmp_path, trust(*answers(300)))
    assert {path.name for path in files} == {"reliability.png", "confidence.png", "coverage.png"}
