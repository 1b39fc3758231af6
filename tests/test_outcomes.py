"""What a run answered, read back from its predictions."""

from __future__ import annotations

import pytest
import torch

from convlens import Data, InputSpec, Split
from convlens.fitting import _predictions_csv
from convlens.outcomes import read_outcomes


def test_small_probabilities_are_kept_for_the_confidence_before_calibration(tmp_path) -> None:
    """Sharpened by a temperature of 0.4, 199 classes share what six decimals would round to nothing."""
    logits = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    logits[:, 7] += 7
    classes, images = tuple(f"c{i}" for i in range(200)), torch.zeros(50, 1, 2, 2, dtype=torch.uint8)
    split = Split(images, torch.full((50,), 7), torch.arange(50))
    data = Data("many", classes, InputSpec((2, 2), 1), (0.5,), (0.3,), True, "", split, None, split)
    (tmp_path / "predictions.csv").write_bytes(b"".join(_predictions_csv(data, logits / 0.4)))
    outcomes = read_outcomes(tmp_path / "predictions.csv", classes)
    raw = logits.double().softmax(1).amax(1).numpy()
    assert raw.mean() < 0.9 < outcomes.confidence.mean()
    assert outcomes.before(0.4) == pytest.approx(raw, abs=1e-5)
