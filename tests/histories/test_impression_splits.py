"""Splits of impressions: every candidate once, requests whole, stages in the order of time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from recsys.histories.clicks import ClickSplit, click_split
from recsys.histories.impression_splits import impressions_by_time, impressions_by_user
from recsys.histories.impressions import Impressions, history_ends_at
from recsys.histories.questions import Questions, Split, SplitError
from recsys.histories.store import HistoryStore

STAGES = ("training", "validation", "test")
Row = tuple[int, int, int, int]  # user, time, request, label


def store_of(shown: list[Row], labels: list[int] | None = None) -> HistoryStore:
    """Three users; user 0 has events at 0 … 9, user 1 at 5, user 2 none."""
    store = HistoryStore.from_lists(
        [list(range(1, 11)), [11], []], items=20, times=[list(range(10)), [5], []]
    )
    assert store.times is not None
    if labels is not None:
        store = replace(store, labels=np.array(labels, dtype=np.int8))
    shown = sorted(shown, key=lambda row: row[:2])
    users, times, requests, clicked = np.array(shown, dtype=np.int64).reshape(-1, 4).T
    impressions = Impressions(
        users=users,
        items=(1 + np.arange(len(shown)) % 20).astype(np.int32),
        labels=clicked.astype(np.int8),
        times=times,
        requests=requests,
        history_ends=history_ends_at(store.offsets, store.times, users, times),
    )
    return replace(store, impressions=impressions)


def check(store: HistoryStore, clicks: ClickSplit) -> None:
    """Nothing lost or changed, nothing twice, no request in two stages, asked as it began."""
    shown = store.impressions
    assert shown is not None
    stages = [getattr(clicks, stage) for stage in STAGES]
    rows = np.concatenate([stage.rows for stage in stages])
    assert sorted(rows.tolist()) == list(range(len(shown)))
    # Candidates belong together exactly where user and request (or moment) are the same.
    named = np.where(shown.requests < 0, -1 - shown.times, shown.requests)
    pairs = list(zip(shown.users.tolist(), named.tolist(), strict=True))
    began = {pair: int(time) for pair, time in zip(pairs[::-1], shown.times[::-1], strict=True)}
    for name, stage in zip(STAGES, stages, strict=True):
        assert stage.users.tolist() == shown.users[stage.rows].tolist()
        assert stage.candidates.tolist() == shown.items[stage.rows].tolist()
        assert stage.labels.tolist() == shown.labels[stage.rows].tolist()
        assert stage.times is not None
        assert stage.times.tolist() == [began[pairs[row]] for row in stage.rows]
        assert clicks.counts[f"{name}_candidates"] == len(stage)
        assert clicks.counts[f"{name}_requests"] == len(set(stage.requests.tolist()))
        for user, time, end in zip(stage.users, stage.times, stage.history_ends, strict=True):
            begin = clicks.view.offsets[user]
            seen = clicks.view.rows(np.arange(begin, begin + end))
            own = np.arange(store.offsets[user], store.offsets[user + 1])
            assert store.times is not None
            wanted = own[store.times[own] < time]
            if clicks.view.kind == "positives" and store.labels is not None:
                wanted = wanted[store.labels[wanted] == 1]
            assert seen.tolist() == wanted.tolist()
    truth: dict[tuple[int, int], set[int]] = {}
    found: dict[int, set[int]] = {}
    for stage in stages:
        for row, request in zip(stage.rows.tolist(), stage.requests.tolist(), strict=True):
            truth.setdefault(pairs[row], set()).add(row)
            found.setdefault(request, set()).add(row)
    assert sorted(map(sorted, truth.values())) == sorted(map(sorted, found.values()))
    requests = [set(stage.requests.tolist()) for stage in stages]
    assert not (requests[0] & requests[1] or requests[1] & requests[2] or requests[0] & requests[2])


# So many rows in so many requests that nearly all of these logs can be split.
rows = st.tuples(
    st.integers(0, 2), st.integers(0, 11), st.sampled_from([-1, -1, *range(10)]), st.integers(0, 1)
)
logs = st.lists(rows, min_size=12, max_size=40)
labels = st.none() | st.lists(st.integers(-1, 1), min_size=11, max_size=11)


@given(shown=logs, labels=labels, kind=st.booleans())
def test_by_time_loses_nothing_and_keeps_the_order_of_time(
    shown: list[Row], labels: list[int] | None, kind: bool
) -> None:
    store = store_of(shown, labels)
    try:
        clicks = impressions_by_time(
            store, history="events" if kind else "positives", validation_cut=0.5, test_cut=0.75
        )
    except SplitError:
        reject()  # a stage without candidates, or training of one class
    check(store, clicks)
    firsts = []
    for stage in STAGES:
        questions = getattr(clicks, stage)
        starts = [questions.times[questions.requests == r].min() for r in set(questions.requests)]
        firsts.append((min(starts), max(starts)))
    assert firsts[0][1] < firsts[1][0] <= firsts[1][1] < firsts[2][0]


@given(shown=logs, labels=labels, share=st.none() | st.floats(0.01, 0.35))
def test_by_user_gives_each_users_newest_requests(
    shown: list[Row], labels: list[int] | None, share: float | None
) -> None:
    store = store_of(shown, labels)
    try:
        clicks = impressions_by_user(store, history="positives", share=share)
    except SplitError:
        reject()  # a stage without candidates, or training of one class
    check(store, clicks)
    for user in range(3):
        starts: list[list[int]] = []
        for stage in STAGES:
            questions = getattr(clicks, stage)
            own = questions.users == user
            starts.append(
                [
                    int(questions.times[own & (questions.requests == r)].min())
                    for r in set(questions.requests[own].tolist())
                ]
            )
        n = sum(map(len, starts))
        k = max(1, int(np.ceil(n * (share or 0) - 1e-9)))
        assert [len(s) for s in starts[1:]] == ([k, k] if n > 2 * k else [0, 0])
        if n > 2 * k:
            assert max(starts[0]) <= min(starts[1]) and max(starts[1]) <= min(starts[2])


def test_a_cut_through_a_request_leaves_it_where_it_began() -> None:
    shown = [(0, t, t, t % 2) for t in range(8)] + [(0, 9, 3, 0)]
    clicks = impressions_by_time(
        store_of(shown), history="events", validation_cut=0.5, test_cut=0.7
    )
    assert clicks.training.times is not None
    # The row of moment 9 is asked with the request it belongs to, at 3, before the cut at 4.
    assert clicks.training.rows.tolist() == [0, 1, 2, 3, 8]
    assert clicks.training.times.tolist() == [0, 1, 2, 3, 3]
    assert clicks.training.history_ends.tolist() == [0, 1, 2, 3, 3]
    assert clicks.protocol == "time-impressions-events"
    # Six of nine candidates are before 6, the first moment of the test.
    assert clicks.validation.times is not None and clicks.test.times is not None
    assert (clicks.validation.times.tolist(), clicks.test.times.tolist()) == ([4, 5], [6, 7])


@pytest.mark.parametrize(("label", "word"), [(0, 0), (1, 1)])
def test_one_class_only_is_said(label: int, word: int) -> None:
    store = store_of([(0, t, t, label) for t in range(9)])
    with pytest.raises(SplitError, match=rf"all 7 .* label {word}.*data\.impressions\.columns"):
        impressions_by_user(store, history="events", share=None)


def test_what_cannot_be_split_is_said() -> None:
    store = store_of([(0, t, t, t % 2) for t in range(9)])
    with pytest.raises(SplitError, match=r"no impressions: .*data\.impressions"):
        impressions_by_user(replace(store, impressions=None), history="events", share=None)
    with pytest.raises(SplitError, match=r"split\.share must be more than 0 .* not 0\.5"):
        impressions_by_user(store, history="events", share=0.5)
    with pytest.raises(SplitError, match="must be earlier than"):
        impressions_by_time(store, history="events", validation_cut=0.5, test_cut=0.5)
    with pytest.raises(SplitError, match="no impression is left for training"):
        impressions_by_time(store, history="events", validation_cut="1970-01-01", test_cut=0.5)
    with pytest.raises(
        SplitError, match=r"no impression is left for validation: 3 candidates in 3"
    ):
        few = store_of([(u, 5, u, u % 2) for u in range(3)])
        impressions_by_user(few, history="events", share=None)


def test_a_store_with_impressions_is_not_asked_about_its_events() -> None:
    store = store_of([(0, t, t, t % 2) for t in range(9)], [0, 1] * 5 + [0])
    nobody = Questions(*(np.zeros(0, np.int64) for _ in range(4)))
    with pytest.raises(SplitError, match="take impressions_by_time"):
        click_split(store, Split("x", store.lengths, nobody, nobody, {}, ""), history="events")


@pytest.mark.parametrize("by", ["time", "user"])
def test_a_refit_learns_from_training_and_validation_and_asks_the_same_test(by: str) -> None:
    shown = [(0, t, t // 2, (t // 2 + t) % 2) for t in range(12)]
    store = store_of(shown)

    def split(refit: bool) -> ClickSplit:
        if by == "user":
            return impressions_by_user(store, history="events", share=0.2, refit=refit)
        return impressions_by_time(
            store, history="events", validation_cut=0.5, test_cut=0.8, refit=refit
        )

    plain, refit = split(False), split(True)
    learned = np.concatenate([plain.training.rows, plain.validation.rows])
    assert len(plain.validation) > 0 and len(refit.validation) == 0
    assert sorted(refit.training.rows.tolist()) == sorted(learned.tolist())
    assert refit.test.rows.tolist() == plain.test.rows.tolist()
    assert "then refitted on training + validation" in refit.in_words
