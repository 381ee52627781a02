"""Calibration: against scikit-learn, and on probabilities whose distortion is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluation.calibration import Isotonic, Temperature, reliability
from recsys.evaluation.click_metrics import auc, calibration_error, logloss


def rows(seed: int, n: int = 4000, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from true probabilities, and those of a model too sure by a factor."""
    draw = np.random.Generator(np.random.PCG64(seed))
    logits = draw.normal(size=n)
    labels = (draw.random(n) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    return labels, 1 / (1 + np.exp(-logits * temperature))


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_again(factor):
    fitted = Temperature.fit(*rows(1, 20_000, factor))
    assert fitted.temperature == pytest.approx(factor, rel=0.06)


@pytest.mark.parametrize("kind", [Temperature, Isotonic])
def test_mended_on_validation_better_on_test(kind):
    labels, said = rows(2, temperature=3.0)
    mended = kind.fit(*rows(1, temperature=3.0))(said)
    assert logloss(labels, mended) < logloss(labels, said) - 0.05
    assert calibration_error(labels, mended, 15) < calibration_error(labels, said, 15) / 3
    assert auc(labels, mended) == pytest.approx(auc(labels, said), abs=0.003)


@given(st.integers(0, 300), st.integers(2, 60), st.booleans())
def test_isotonic_is_scikit_learns(seed, n, ties):
    isotonic = pytest.importorskip("sklearn.isotonic")
    draw = np.random.Generator(np.random.PCG64(seed))
    labels = draw.integers(0, 2, n)
    said = draw.random(n).round(1 if ties else 9)
    theirs = isotonic.IsotonicRegression(out_of_bounds="clip").fit(said, labels)
    asked = draw.random(50)
    expected = np.clip(theirs.predict(asked), 1e-7, 1 - 1e-7)
    np.testing.assert_allclose(Isotonic.fit(labels, said)(asked), expected, atol=2e-7)


@given(st.integers(0, 300), st.integers(1, 50), st.integers(1, 12))
def test_a_curve_holds_every_row_once_and_in_order(seed, n, bins):
    draw = np.random.Generator(np.random.PCG64(seed))
    labels, said = draw.integers(0, 2, n), draw.random(n).round(1)
    curve = reliability(labels, said, bins)
    assert curve.rows_S.sum() == n and len(curve.rows_S) <= bins
    assert (np.diff(curve.predicted_S) > 0).all()
    assert (curve.rows_S * curve.clicked_S).sum() == pytest.approx(labels.sum())
    assert (curve.rows_S * curve.predicted_S).sum() == pytest.approx(said.sum())


@pytest.mark.parametrize("fit", [Temperature.fit, Isotonic.fit, reliability])
def test_what_is_no_probability_is_refused(fit):
    with pytest.raises(ValueError, match="NaN"):
        fit(np.array([0, 1]), np.array([0.2, np.nan]))
