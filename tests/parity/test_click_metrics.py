"""The click metrics against scikit-learn, on random and degenerate rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recsys.evaluation.click_metrics import (
    auc,
    calibration_error,
    logloss,
    request_ranks,
    user_aucs,
)
from recsys.evaluation.metrics import ndcg

metrics = pytest.importorskip("sklearn.metrics")
calibration = pytest.importorskip("sklearn.calibration")

SIZE = st.integers(2, 60)
LABELS = SIZE.flatmap(lambda n: arrays.arrays(np.int64, n, elements=st.integers(0, 1)))
# Few different values (ties), 0 and 1 among them, or any.
SCORE = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, allow_subnormal=False))


def scores_of(draw: st.DataObject, labels: np.ndarray) -> np.ndarray:
    return np.array(draw.draw(st.lists(SCORE, min_size=len(labels), max_size=len(labels))))


@given(LABELS, st.data())
def test_auc(labels, draw):
    scores = scores_of(draw, labels)
    if len(set(labels.tolist())) == 1:
        assert np.isnan(auc(labels, scores))  # where scikit-learn warns that it is not defined
    else:
        expected = metrics.roc_auc_score(labels, scores)
        np.testing.assert_allclose(auc(labels, scores), expected, rtol=1e-12)


@given(LABELS, st.data())
def test_logloss(labels, draw):
    scores = scores_of(draw, labels)
    expected = metrics.log_loss(labels, np.column_stack([1 - scores, scores]), labels=[0, 1])
    np.testing.assert_allclose(logloss(labels, scores), expected, rtol=1e-9, atol=1e-14)


@given(LABELS, st.integers(1, 12), st.randoms(use_true_random=False))
def test_ndcg_of_a_request(labels, k, random):
    scores = np.array(random.sample(range(-100, 100), len(labels)), dtype=float)
    found = request_ranks(labels, scores, np.zeros(len(labels), dtype=np.int64))
    if labels.any():
        expected = metrics.ndcg_score([labels], [scores], k=k)
        np.testing.assert_allclose(ndcg(found, k), [expected], rtol=1e-12)
    else:
        assert found.questions == 0


def test_auc_of_many_rows_and_of_each_user():
    draw = np.random.Generator(np.random.PCG64(3))
    scores = draw.random(20_000).round(3)  # ties
    labels = (draw.random(20_000) < scores).astype(np.float32)
    users = draw.integers(0, 300, 20_000)
    assert auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), rel=1e-12)
    found = user_aucs(labels, scores, users)
    for user, value in zip(found.users_U, found.aucs_U, strict=True):
        own = users == user
        expected = metrics.roc_auc_score(labels[own], scores[own])
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("binning", "strategy"), [("equal_width", "uniform"), ("equal_mass", "quantile")]
)
def test_bins_of_the_calibration_curve(binning, strategy):
    draw = np.random.Generator(np.random.PCG64(5))
    said = draw.random(4_000)
    labels = (draw.random(4_000) < said**2).astype(np.int64)
    shares, means = calibration.calibration_curve(labels, said, n_bins=10, strategy=strategy)
    # It does not give the sizes of its bins.
    sizes = np.histogram(said, 10, (0, 1))[0] if strategy == "uniform" else np.full(10, 400)
    expected = (np.abs(shares - means) * sizes).sum() / 4_000
    assert calibration_error(labels, said, 10, binning) == pytest.approx(expected, rel=1e-12)
