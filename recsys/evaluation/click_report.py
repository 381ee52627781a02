"""The numbers and the table of an evaluation of clicks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import get_args

import numpy as np
import polars as pl

from recsys.evaluation.click_metrics import (
    Weighting,
    auc,
    calibration_error,
    logloss,
    normalised_entropy,
    request_ranks,
    user_aucs,
)
from recsys.evaluation.intervals import (
    Interval,
    Metric,
    bootstrap_columns,
    bootstrap_metric,
    jackknife,
    user_groups,
)
from recsys.evaluation.metrics import checked, mrr, ndcg
from recsys.histories.clicks import ClickQuestions
from recsys.histories.store import NO_TIME, HistoryStore

# Of (labels_N, probabilities_N), one number a question, more being better.
ClickMetric = Callable[[np.ndarray, np.ndarray], np.ndarray]
NO_METRICS: Mapping[str, ClickMetric] = {}


def click_values(
    labels_N: np.ndarray, probabilities_N: np.ndarray, own: Mapping[str, ClickMetric]
) -> dict[str, np.ndarray]:
    """Metrics of one's own, question by question.

    Args:
        labels_N: 0 or 1.
        probabilities_N: of a click, in [0, 1].
        own: the metrics, by name.

    Returns:
        Metric name → float64 [N].

    Raises:
        MetricError: a metric gives anything but a finite number for each question.
    """
    return {
        name: checked(name, metric(labels_N, probabilities_N), len(labels_N))
        for name, metric in own.items()
    }


def summarise_clicks(
    labels_N: np.ndarray,
    probabilities_N: np.ndarray,
    users_N: np.ndarray,
    requests_N: np.ndarray | None = None,
    *,
    ks: Sequence[int] = (10,),
    weighting: Weighting = "impressions",
    bins: int = 15,
    own: Mapping[str, ClickMetric] = NO_METRICS,
) -> dict[str, float]:
    """Every metric of clicks, and what each is over.

    >>> from recsys.evaluation.click_metrics import LABELS, PROBABILITIES, USERS
    >>> values = summarise_clicks(LABELS, PROBABILITIES, USERS)
    >>> values["gauc"], values["users_counted"], values["users_excluded"]
    (0.75, 2.0, 1.0)

    Args:
        labels_N: 0 or 1.
        probabilities_N: of a click, in [0, 1].
        users_N: integers or text.
        requests_N: int64, equal for candidates that were shown together, below 0 where unknown.
            None, or unknown throughout: nothing is said about requests.
        ks: cut-offs of the requests' metrics.
        weighting: what a user counts in GAUC.
        bins: of the calibration errors.
        own: more metrics by name, each the mean over the questions.

    Returns:
        `auc`, `gauc`, `logloss`, `normalised_entropy`, `calibration_error` (bins of equal width)
        and `calibration_error_mass` (of as many rows each) as `click_metrics` defines them, NaN
        where one is not defined; `questions` and `clicks`, the number of rows and of those
        clicked; `users_counted` and `users_excluded` (of GAUC: those without both classes).
        With requests also `request_ndcg_K` and `request_mrr_K`, means over the requests with a
        click, and `requests_counted` and `requests_excluded` (those without).

    Raises:
        ValueError: what `click_metrics` refuses.
    """
    by_user = user_aucs(labels_N, probabilities_N, users_N)
    counted = int(by_user.counted_U.sum())
    values = {
        "auc": auc(labels_N, probabilities_N),
        "gauc": by_user.mean(weighting),
        "logloss": logloss(labels_N, probabilities_N),
        "normalised_entropy": normalised_entropy(labels_N, probabilities_N),
        "calibration_error": calibration_error(labels_N, probabilities_N, bins),
        "calibration_error_mass": calibration_error(labels_N, probabilities_N, bins, "equal_mass"),
        "questions": float(by_user.impressions_U.sum()),
        "clicks": float(by_user.clicks_U.sum()),
        "users_counted": float(counted),
        "users_excluded": float(len(by_user.users_U) - counted),
    }
    of_questions = click_values(labels_N, probabilities_N, own)
    values |= {name: float(values_N.mean()) for name, values_N in of_questions.items()}
    if requests_N is None or not np.any(requests_N >= 0):
        return values
    ranks = request_ranks(labels_N, probabilities_N, requests_N)
    requests = len(np.unique(requests_N[requests_N >= 0]))
    for k in ks:
        for name, metric in (("request_ndcg", ndcg), ("request_mrr", mrr)):
            of_each = metric(ranks, k)
            values[f"{name}_{k}"] = float(of_each.mean()) if len(of_each) else float("nan")
    values["requests_counted"] = float(ranks.questions)
    values["requests_excluded"] = float(requests - ranks.questions)
    return values


def click_intervals(
    labels_N: np.ndarray,
    probabilities_N: np.ndarray,
    users_N: np.ndarray,
    requests_N: np.ndarray | None = None,
    *,
    ks: Sequence[int] = (10,),
    weighting: Weighting = "impressions",
    bins: int = 15,
    resamples: int = 1000,
    metrics: Collection[str] | None = None,
    own: Mapping[str, ClickMetric] = NO_METRICS,
) -> dict[str, Interval]:
    """The interval of each metric of `summarise_clicks` that is defined.

    AUC, GAUC, logloss, metrics of one's own and those of requests by drawing users; normalised
    entropy and the calibration errors, which are no means, by leaving out groups of users.

    Args:
        labels_N: 0 or 1.
        probabilities_N: of a click, in [0, 1].
        users_N: integers or text.
        requests_N: as in `summarise_clicks`.
        ks: cut-offs of the requests' metrics.
        weighting: what a user counts in GAUC.
        bins: of the calibration errors.
        resamples: draws of users.
        metrics: which of them, those of requests and of one's own aside; None: all.
        own: more metrics by name.

    Raises:
        ValueError: what `summarise_clicks` refuses, or settings that make no interval.
    """
    found: dict[str, Interval | None] = {}
    defined = {"auc": auc(labels_N, probabilities_N), "logloss": 0.0}
    defined["gauc"] = user_aucs(labels_N, probabilities_N, users_N).mean(weighting)
    for metric in get_args(Metric):
        if (metrics is None or metric in metrics) and not np.isnan(defined[metric]):
            found[metric] = bootstrap_metric(
                labels_N, users_N, probabilities_N, metric, weighting=weighting, resamples=resamples
            )
    if own:
        columns = np.column_stack(list(click_values(labels_N, probabilities_N, own).values()))
        drawn = bootstrap_columns(columns, users_N, resamples=resamples)
        found |= dict(zip(own, drawn, strict=True))
    group_N = user_groups(users_N)
    rests = [group_N != group for group in range(group_N.max() + 1)]
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "normalised_entropy": normalised_entropy,
        "calibration_error": lambda labels, scores: calibration_error(labels, scores, bins),
        "calibration_error_mass": lambda labels, scores: calibration_error(
            labels, scores, bins, "equal_mass"
        ),
    }
    if len(rests) > 1:
        for name, measure in measures.items():
            if metrics is not None and name not in metrics:
                continue
            without_G = np.array([measure(labels_N[rest], probabilities_N[rest]) for rest in rests])
            most = np.inf if name == "normalised_entropy" else 1.0
            found[name] = jackknife(measure(labels_N, probabilities_N), without_G, most=most)
    if requests_N is not None and np.any(requests_N >= 0):
        found |= _intervals_of_requests(
            labels_N, probabilities_N, users_N, requests_N, ks, resamples
        )
    return {name: interval for name, interval in found.items() if interval is not None}


def _intervals_of_requests(
    labels_N: np.ndarray,
    probabilities_N: np.ndarray,
    users_N: np.ndarray,
    requests_N: np.ndarray,
    ks: Sequence[int],
    resamples: int,
) -> dict[str, Interval]:
    ranks = request_ranks(labels_N, probabilities_N, requests_N)
    if not ranks.questions:
        return {}
    # Those with a click, in the order of their numbers; a request is one user's.
    clicked = (requests_N >= 0) & (labels_N == 1)
    _, first = np.unique(requests_N[clicked], return_index=True)
    asked = users_N[clicked][first]
    names = [f"{name}_{k}" for k in ks for name in ("request_ndcg", "request_mrr")]
    columns = [metric(ranks, k) for k in ks for metric in (ndcg, mrr)]
    intervals = bootstrap_columns(np.column_stack(columns), asked, resamples=resamples)
    return dict(zip(names, intervals, strict=True))


def per_question_click_frame(
    questions: ClickQuestions,
    probabilities_N: np.ndarray,
    store: HistoryStore,
    own: Mapping[str, ClickMetric] = NO_METRICS,
) -> pl.DataFrame:
    """One row a question, in the questions' order: what intervals and comparisons start from.

    Args:
        questions: what was asked.
        probabilities_N: what a model answered.
        store: the histories.
        own: more metrics by name.

    Returns:
        `user` and `item` (raw ids), `label` (Int8), `score` (Float64), `history_length` (events in
        view before the question), `request` (Int64, null where unknown), a column for each of the
        own metrics and, where the log has times, `time` (microseconds since 1970, null where
        unknown).

    Raises:
        ValueError: not one score per question.
    """
    if np.shape(probabilities_N) != (len(questions),):
        raise ValueError(
            f"scores of shape {np.shape(probabilities_N)} for {len(questions)} questions"
        )
    frame = pl.DataFrame(
        {
            "user": store.user_vocabulary.raw(questions.users),
            "item": store.item_vocabulary.raw(questions.candidates),
            "label": questions.labels.astype(np.int8),
            "score": np.asarray(probabilities_N, dtype=np.float64),
            "history_length": questions.history_ends,
            "request": questions.requests,
            **click_values(questions.labels, np.asarray(probabilities_N), own),
        }
    ).with_columns(pl.when(pl.col("request") >= 0).then("request").alias("request"))
    if questions.times is None:
        return frame
    time = pl.Series("time", questions.times)
    return frame.with_columns(time).with_columns(
        pl.when(pl.col("time") != NO_TIME).then("time").alias("time")
    )
