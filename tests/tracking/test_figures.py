"""The curves show the numbers they were given."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest

from recsys.tracking.figures import (
    importance_bars,
    interval_points,
    item_map,
    loss_curve,
    metric_curve,
    moving_average,
    parallel_coordinates,
    principal_plane,
    rank_curves,
)


def test_moving_average_is_unbiased_and_skips_what_is_not_a_number() -> None:
    assert moving_average([5.0] * 4, 0.9) == pytest.approx([5.0] * 4)
    assert moving_average([3.0, 1.0, 2.0], 0.0) == [3.0, 1.0, 2.0]
    smooth = moving_average([1.0, math.nan, 3.0, math.inf], 0.5)
    assert smooth == pytest.approx([1.0, 1.0, (0.25 + 1.5) / 0.75, (0.25 + 1.5) / 0.75])
    assert math.isnan(moving_average([math.nan], 0.5)[0])


def test_loss_curve_draws_points_and_average() -> None:
    losses = [4.0, 3.0, math.nan, 1.0]
    (axes,) = loss_curve(range(4), losses, smoothing=0.5, epoch_ends=[1, 3]).axes
    points, smooth, *ends = axes.get_lines()
    np.testing.assert_array_equal(points.get_ydata(), losses)
    assert list(smooth.get_ydata()) == moving_average(losses, 0.5)
    assert [line.get_xdata()[0] for line in ends] == [1, 3]


def test_metric_curve_draws_the_baselines_best_first() -> None:
    figure = metric_curve(
        "val/loo-full-unseen/ndcg_10",
        [0, 1, 2],
        [0.01, 0.09, 0.08],
        baselines={"Popularity": 0.02, "ItemKNN": 0.07},
        best_epoch=1,
        model="sasrec",
    )
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "val/loo-full-unseen/ndcg_10"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["sasrec", "ItemKNN 0.0700", "Popularity 0.0200", "kept: epoch 1, 0.0900"]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["sasrec"].get_ydata()) == [0.01, 0.09, 0.08]
    assert set(lines["ItemKNN 0.0700"].get_ydata()) == {0.07}
    star = lines["kept: epoch 1, 0.0900"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([1], [0.09])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_places_and_values_must_match() -> None:
    with pytest.raises(ValueError, match="not 3 and 2"):
        metric_curve("m", [0, 1, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="not 1 and 2"):
        loss_curve([0], [0.1, 0.2])


def test_interval_points_stand_beside_each_other() -> None:
    groups = {
        "SASRec": [(0.1, 0.2, 0.4), (0.3, 0.5, 0.6)],
        "EASE": [(0.0, 0.1, 0.2), (0.1, 0.2, 0.3)],
    }
    (axes,) = interval_points("NDCG@10 by popularity", ["head", "tail"], groups).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["head", "tail"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(groups)
    for container, (name, ends) in zip(axes.containers, groups.items(), strict=True):
        points, _, (bars,) = container
        assert container.get_label() == name
        np.testing.assert_allclose(list(points.get_ydata()), [middle for _, middle, _ in ends])
        drawn = [segment[:, 1].tolist() for segment in bars.get_segments()]
        np.testing.assert_allclose(drawn, [(low, high) for low, _, high in ends])
    ours, theirs = (container[0].get_xdata() for container in axes.containers)
    assert all(abs(a - b) > 0.1 for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(ValueError, match="not 2 and 1"):
        interval_points("m", ["head", "tail"], {"SASRec": [(0.1, 0.2, 0.4)]})


def test_rank_curves_are_hit_rates_over_the_cut_off() -> None:
    ranks = [3, 1, 0, 20]  # the third was missed
    (axes,) = rank_curves("ranks", {"SASRec": ranks, "EASE": [0, 0, 0, 0]}).axes
    line, nothing = axes.get_lines()
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [
        (1, 0.25),
        (3, 0.5),
        (20, 0.75),
    ]
    assert len(nothing.get_xdata()) == 0
    assert axes.get_xscale() == "log"


def test_the_principal_plane_is_that_of_a_decomposition() -> None:
    draw = np.random.Generator(np.random.PCG64(3))
    vectors_VD = draw.normal(size=(50, 6)) * [5, 3, 1, 1, 0.5, 0.1] + 7
    places_V2, shares = principal_plane(vectors_VD)
    centred_VD = vectors_VD - vectors_VD.mean(0)
    _, sizes, directions = np.linalg.svd(centred_VD, full_matrices=False)
    np.testing.assert_allclose(np.abs(places_V2), np.abs(centred_VD @ directions[:2].T))
    np.testing.assert_allclose(shares, (sizes**2 / (sizes**2).sum())[:2])
    # Which way is up: the largest weight of each direction is positive.
    weights_D2 = centred_VD.T @ places_V2
    assert (weights_D2[np.abs(weights_D2).argmax(0), [0, 1]] > 0).all()
    mirrored, _ = principal_plane(vectors_VD[::-1])
    np.testing.assert_allclose(mirrored[::-1], places_V2)
    flat, shares = principal_plane(np.ones((4, 1)))
    assert flat.shape == (4, 2) and not flat.any() and shares == (0, 0)


def test_the_item_map_shows_popular_items_on_top_with_their_names() -> None:
    vectors_VD = np.array([[0.0, 0], [1, 0], [2, 0], [0, 0.5]])
    counts_V = np.array([5, 100, 0, 7])
    axes, bar = item_map("items", vectors_VD, counts_V, {1: "Star Wars"}).axes
    (points,) = axes.collections
    assert points.get_array().tolist() == [1, 5, 7, 100]
    places_V2, shares = principal_plane(vectors_VD)
    np.testing.assert_allclose(points.get_offsets()[-1], places_V2[1])
    (text,) = axes.texts
    assert text.get_text() == "Star Wars" and tuple(text.xy) == tuple(places_V2[1])
    assert f"{shares[0]:.0%}" in axes.get_xlabel() and bar.get_ylabel() == "training events"


def test_importance_stands_with_the_heaviest_on_top() -> None:
    (axes,) = importance_bars("val/x", {"model.width": 0.2, "trainer.learning_rate": 0.8}).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert dict(zip(names, [bar.get_width() for bar in axes.patches], strict=True)) == {
        "model.width": 0.2,
        "trainer.learning_rate": 0.8,
    }
    assert names[-1] == "trainer.learning_rate"


@pytest.mark.parametrize("smaller", [False, True])
def test_parallel_coordinates_draw_each_trial_and_the_best_on_top(smaller: bool) -> None:
    rates, words, scores = [0.001, 0.1, 0.01, 0.1, 0.01], list("baaab"), [0.1, 0.5, 0.3, 0.2, 0.4]
    figure = parallel_coordinates(
        "val/loo/x",
        {"trainer.learning_rate": rates, "model.norm": words},
        scores,
        logarithmic=["trainer.learning_rate"],
        smaller_is_better=smaller,
    )
    (axes,) = figure.axes
    drawn = axes.get_lines()[: len(scores)]
    wanted = {
        ((math.log10(rate) + 3) / 2, float(word == "b"), (score - 0.1) / 0.4)
        for rate, word, score in zip(rates, words, scores, strict=True)
    }
    found = {tuple(float(y) for y in line.get_ydata()) for line in drawn}
    np.testing.assert_allclose(sorted(found), sorted(wanted), atol=1e-12)
    assert drawn[-1].get_label() == "the best trial"
    assert drawn[-1].get_ydata()[-1] == pytest.approx(0.0 if smaller else 1.0)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["learning_rate", "norm", "x"]


def test_parallel_coordinates_take_a_value_of_each_trial() -> None:
    with pytest.raises(ValueError, match="not 1 and 2"):
        parallel_coordinates("x", {"model.width": [8]}, [0.1, 0.2])
