"""Cohorts: every question in its part, against loops, and the parts' means with intervals."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys.evaluation.cohorts import (
    MOST_PARTS,
    CohortError,
    asked_clicks,
    asked_next,
    check_cohorts,
    cohort_columns,
    cohort_table,
    popularity_parts,
    quarters,
    training_counts,
    worst,
)
from recsys.evaluation.intervals import bootstrap_means
from recsys.histories.attributes import Attribute, attribute_of
from recsys.histories.clicks import ClickQuestions, history_view
from recsys.histories.questions import Questions, leave_one_out
from recsys.histories.store import NO_TIME, HistoryStore

DAY = 24 * 3_600_000_000


def store_of(histories, times=None, **attributes: Attribute) -> HistoryStore:
    return replace(
        HistoryStore.from_lists(histories, times=times),
        attributes={name.replace("_", ".", 1): a for name, a in attributes.items()},
    )


def columns(names, store, questions=None) -> dict[str, list]:
    ends = store.lengths
    last = Questions(np.arange(store.users), ends - 1, ends - 1, ends)
    counts = training_counts(store, ends - 2)
    frame = cohort_columns(names, store, asked_next(store, questions or last), counts)
    return {name.removeprefix("cohort/"): frame[name].to_list() for name in frame.columns}


def test_repeats_and_popularity_against_loops():
    draw = np.random.Generator(np.random.PCG64(3))
    histories = [draw.integers(1, 12, n).tolist() for n in draw.integers(3, 15, 60)]
    store = store_of(histories)
    split = leave_one_out(store)
    found = columns(["repeat", "popularity"], store)
    assert found["repeat"] == ["repeat" if h[-1] in h[:-1] else "new" for h in histories]
    counts = np.bincount([i for h in histories for i in h[:-2]], minlength=store.catalogue_size)
    assert np.array_equal(training_counts(store, split.training_ends), counts)
    parts = popularity_parts(counts)
    assert found["popularity"] == [parts[h[-1]] for h in histories]
    order = sorted(range(1, store.catalogue_size), key=lambda item: -counts[item])
    before = 0
    for item in order:
        third = ["head", "mid", "tail"][3 * before // counts.sum()]
        assert parts[item] == ("untrained" if counts[item] == 0 else third)
        before += counts[item]


def test_history_length_in_quarters():
    lengths = [3, 3, 4, 6, 8, 9, 20, 50]
    found = columns(["history_length"], store_of([[1] * n for n in lengths]))["history_length"]
    assert found == ["2", "2", "3–5", "3–5", "7–8", "7–8", "19–49", "19–49"]


def test_a_question_without_history_has_a_part_of_its_own():
    store = store_of([[1, 2, 3], [1, 2, 3]], times=[[0, 1, 2], [0, 1, 2]])
    first = Questions(*(np.array(a) for a in ([0, 1], [0, 2], [0, 2], [1, 3])))
    found = columns(["history_length", "recency", "repeat"], store, first)
    assert found["history_length"] == ["no history", "2"]
    assert found["recency"] == ["no history", "within an hour"]
    assert found["repeat"] == ["new", "new"]


def test_recency_by_the_time_before_the_answer():
    gaps = [0, 3_600_000_000, 3_600_000_001, DAY, 7 * DAY, 30 * DAY, 30 * DAY + 1]
    times = [[0, 5, 5 + gap] for gap in gaps]
    found = columns(["recency"], store_of([[1, 2, 3]] * len(gaps), times=times))["recency"]
    assert found == [
        "within an hour",
        "within an hour",
        "within a day",
        "within a day",
        "within a week",
        "within 30 days",
        "later",
    ]


@pytest.mark.parametrize("place", [1, 2])
def test_recency_is_unknown_where_a_time_is(place):
    times = [[0, 5, 9]]
    times[0][place] = NO_TIME
    assert (
        columns(["recency"], store_of([[1, 2, 3]] * 2, times=times * 2))["recency"][0] == "unknown"
    )
    assert columns(["recency"], store_of([[1, 2, 3]] * 2))["recency"] == ["unknown"] * 2


def test_columns_of_users_and_items():
    gender = attribute_of(pl.Series("gender", ["F", None]), "here")
    genres = attribute_of(pl.Series("genres", [None, ["a", "b"], ["b"], []]), "here")
    price = attribute_of(pl.Series("price", [None, 0.5, 1.5, 2.5]), "here")
    store = store_of(
        [[1, 2, 1], [1, 2, 3]], user_gender=gender, item_genres=genres, item_price=price
    )
    found = columns(["user.gender", "item.genres", "item.price"], store)
    assert found["user.gender"] == ["F", "unknown"]
    assert found["item.genres"] == [["a", "b"], ["unknown"]]
    assert found["item.price"] == ["0.5", "2.5"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("user.gendre", "did you mean 'user.gender'"), ("popularty", "did you mean 'popularity'")],
)
def test_a_cohort_of_another_name_is_refused(name, words):
    store = store_of(
        [[1, 2, 3]] * 2, user_gender=attribute_of(pl.Series("gender", ["F", "M"]), "here")
    )
    with pytest.raises(CohortError, match=words):
        columns([name], store)


def test_quarters_keep_equal_numbers_together_and_cover_all():
    draw = np.random.Generator(np.random.PCG64(1))
    for _ in range(50):
        values = draw.integers(0, draw.integers(1, 30), draw.integers(1, 40)).astype(float)
        values[draw.random(len(values)) < 0.1] = np.nan
        names = quarters(values)
        for name in set(names) - {"unknown"}:
            low, _, high = name.partition("–")
            inside = values[names == name]
            assert (inside.min(), inside.max()) == (float(low), float(high or low))
            outside = values[(names != name) & ~np.isnan(values)]
            assert not ((outside >= inside.min()) & (outside <= inside.max())).any()
        assert (np.isnan(values) == (names == "unknown")).all()
        assert len(set(names) - {"unknown"}) <= 4


def test_the_table_gives_each_part_its_mean_and_interval():
    frame = pl.DataFrame(
        {
            "user": ["a", "b", "c", "d"],
            "cohort/repeat": ["new", "repeat", "new", "new"],
            "cohort/item.genres": [["x"], ["x", "y"], ["y"], ["unknown"]],
        }
    )
    values = np.array([1.0, 0.5, 0.0, 0.0])
    rows = cohort_table(frame, values, resamples=50)
    found = {(r.cohort, r.value): (r.questions, r.interval.estimate) for r in rows}
    assert found == {
        ("repeat", "new"): (3, pytest.approx(1 / 3)),
        ("repeat", "repeat"): (1, 0.5),
        ("item.genres", "x"): (2, 0.75),
        ("item.genres", "y"): (2, 0.25),
        ("item.genres", "unknown"): (1, 0.0),
    }
    assert rows[0].interval == bootstrap_means(
        values[[0, 2, 3]], np.array(["a", "c", "d"]), resamples=50
    )


def test_parts_stand_in_their_own_order():
    parts = ["tail", "head", "mid", "unknown", "no history", "10–20", "3–9", "b", "a", "later"]
    frame = pl.DataFrame({"user": range(len(parts)), "cohort/all": parts})
    rows = cohort_table(frame, np.zeros(len(parts)), resamples=2)
    assert [row.value for row in rows] == [
        "no history",
        "later",
        "head",
        "mid",
        "tail",
        "3–9",
        "10–20",
        "a",
        "b",
        "unknown",
    ]


def test_the_worst_has_enough_questions():
    frame = pl.DataFrame({"user": range(5), "cohort/c": ["a", "a", "b", "b", "d"]})
    rows = cohort_table(frame, np.array([1.0, 1.0, 0.5, 0.5, 0.0]), resamples=2)
    found = worst(rows, least=2)
    assert found is not None and found.value == "b"
    assert worst(rows, least=3) is None


def test_clicks_have_cohorts_by_their_view():
    """Positives make the histories: an event that was not taken is no history and no repeat."""
    store = replace(
        HistoryStore.from_lists([[1, 2, 1, 3]], times=[[0, 5, 9, 9 + DAY]]),
        labels=np.array([1, 0, 1, 0], dtype=np.int8),
    )
    view = history_view(store, "positives")
    questions = ClickQuestions(
        users=np.array([0, 0, 0]),
        history_ends=np.array([0, 1, 2]),
        candidates=np.array([1, 1, 2]),
        labels=np.array([1, 1, 0], dtype=np.float32),
        requests=np.full(3, -1),
        rows=np.array([0, 2, 3]),
        times=np.array([0, 9, 9 + DAY]),
    )
    asked = asked_clicks(view, questions)
    assert asked.repeats.tolist() == [False, True, False]
    names = ["repeat", "recency", "history_length"]
    frame = cohort_columns(names, store, asked, np.ones(4, dtype=np.int64))
    assert frame["cohort/recency"].to_list() == ["no history", "within an hour", "within a day"]
    assert frame["cohort/history_length"].to_list() == ["no history", "1", "2"]


def test_numbers_of_many_values_come_in_quarters_and_rare_words_together():
    n = 60
    years = attribute_of(pl.Series("year", [None, *range(1940, 1940 + n)]), "here")
    words = [None, *(["often"] * 30), *(f"rare {i}" for i in range(30))]
    studio = attribute_of(pl.Series("studio", words), "here")
    tags = attribute_of(pl.Series("tags", [None, *([f"tag {i}", "all"] for i in range(n))]), "here")
    store = store_of(
        [[1, 1, i] for i in range(1, n + 1)], item_year=years, item_studio=studio, item_tags=tags
    )
    found = columns(["item.year", "item.studio", "item.tags"], store)
    assert sorted(set(found["item.year"])) == [
        "1,940–1,954",
        "1,955–1,969",
        "1,970–1,984",
        "1,985–1,999",
    ]
    assert found["item.studio"][:30] == ["often"] * 30
    assert len(set(found["item.studio"])) == MOST_PARTS and "other" in found["item.studio"]
    assert all("all" in said for said in found["item.tags"])
    assert ["other", "all"] in found["item.tags"]


def test_cohorts_are_checked_before_anything_is_made_of_them():
    store = store_of([[1, 2, 3]], user_gender=attribute_of(pl.Series("gender", ["F"]), "here"))
    check_cohorts(["repeat", "user.gender"], store)
    with pytest.raises(CohortError, match=r"did you mean 'user\.gender'"):
        check_cohorts(["user.gendre"], store)
