"""The split audit: every finding against a loop over the events."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.histories import audit
from recsys.histories.audit import (
    NAMES,
    AuditError,
    Finding,
    audit_split,
    check_thresholds,
    other_tie_order,
)
from recsys.histories.questions import Split, global_time, leave_one_out, user_share
from recsys.histories.store import NO_TIME, HistoryStore


def random_store(seed: int, users: int = 12, span: int = 30, unknown: float = 0.1) -> HistoryStore:
    draw = np.random.Generator(np.random.PCG64(seed))
    histories, times = [], []
    for _ in range(users):
        n = int(draw.integers(3, 10))
        histories.append(draw.integers(1, 8, n).tolist())
        moments = np.sort(draw.integers(0, span, n))
        times.append(np.where(draw.random(n) < unknown, NO_TIME, moments).tolist())
    return HistoryStore.from_lists(histories, items=9, times=times)


def by_loops(store: HistoryStore, split: Split) -> dict[str, tuple[int, int]]:
    learned = [
        (u, int(store.items[e]), int(store.times[e]))
        for u, end in enumerate(split.training_ends)
        for e in range(store.offsets[u], store.offsets[u] + end)
    ]
    known = [t for _, _, t in learned if t != NO_TIME]
    counts = dict.fromkeys(NAMES, 0)
    of = dict.fromkeys(NAMES, 0)
    test = split.test
    rows = zip(test.users, test.history_ends, test.target_begins, test.target_ends, strict=True)
    for u, history_end, begin, end in rows:
        at = store.offsets[u]
        moment = store.times[at + begin]
        of["cold_users"] += 1
        counts["cold_users"] += split.training_ends[u] == 0
        if moment != NO_TIME:
            of["future"] += len(known)
            counts["future"] += sum(t > moment for t in known)
            of["future_questions"] += 1
            counts["future_questions"] += any(t >= moment for t in known)
        history = store.history(u, int(history_end)).tolist()
        for e in range(at + begin, at + end):
            item, time = int(store.items[e]), store.times[e]
            outside = [
                store.times[n]
                for n in (at + begin - 1, at + end)
                if at <= n < store.offsets[u + 1] and time != NO_TIME
            ]
            for name in ("duplicates", "ties", "cold_items", "repeats"):
                of[name] += 1
            counts["duplicates"] += time != NO_TIME and (u, item, int(time)) in learned
            counts["ties"] += time in outside
            counts["cold_items"] += item not in {i for _, i, _ in learned}
            counts["repeats"] += item in history
    return {name: (int(counts[name]), of[name]) for name in NAMES}


@given(st.integers(0, 500), st.sampled_from(["loo", "share", "time-all", "time-last"]))
def test_every_finding_is_what_a_loop_counts(seed, kind):
    store = random_store(seed, unknown=0.1 if seed % 2 else 0.0)
    if kind == "loo":
        split = leave_one_out(store, 5)
    elif kind == "share":
        split = user_share(store, 0.2)
    else:
        split = global_time(
            store,
            validation_cut=0.5,
            test_cut=0.7,
            target=kind.removeprefix("time-"),
            new_users="asked",
        )
    expected = by_loops(store, split)
    for block in (1, 40, 1 << 22):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audit, "_BLOCK", block)
            found = {f.name: (f.count, f.of) for f in audit_split(store, split)}
        assert found == expected


def test_a_log_without_times_has_no_findings_about_time():
    store = HistoryStore.from_lists([[1, 2, 3, 1], [2, 2, 4]])
    found = {f.name: f.count for f in audit_split(store, leave_one_out(store))}
    assert found == {"cold_users": 0, "cold_items": 1, "repeats": 1}


def test_a_split_by_time_does_not_look_ahead():
    store = random_store(3, users=40, unknown=0.0)
    split = global_time(store, validation_cut=0.6, test_cut=0.8, target="all", new_users="asked")
    found = {f.name: f.count for f in audit_split(store, split)}
    assert found["future"] == found["future_questions"] == 0
    ahead = {f.name: f.count for f in audit_split(store, leave_one_out(store))}
    assert ahead["future"] > 0


FINDINGS = [Finding("repeats", 3, 10, NAMES["repeats"]), Finding("cold_users", 0, 0, "none")]


def test_thresholds_refuse_what_is_beyond():
    check_thresholds(FINDINGS, {"repeats": 0.3, "cold_users": 0.0, "cold_items": None})
    with pytest.raises(AuditError, match=r"30.0% \(3 of 10\), more than audit.repeats=0.2"):
        check_thresholds(FINDINGS, {"repeats": 0.2})


@pytest.mark.parametrize(
    ("at_most", "words"),
    [
        ({"repeat": 0.1}, "did you mean 'repeats'"),
        ({"future": 0.1}, "no such finding: it needs times"),
        ({"repeats": 1.5}, "from 0 to 1, not 1.5"),
    ],
)
def test_a_threshold_that_means_nothing_is_refused(at_most, words):
    with pytest.raises(AuditError, match=words):
        check_thresholds(FINDINGS, at_most)


def test_a_finding_says_itself():
    said = "answers that the history holds already: 30.0% (3 of 10)"
    assert [str(finding) for finding in FINDINGS] == [said, "none: 0.0% (0 of 0)"]


@given(st.integers(0, 200))
def test_another_tie_order_moves_equal_times_inside_their_part_alone(seed):
    store = random_store(seed, users=20, span=4)
    ends = leave_one_out(store).training_ends
    other = other_tie_order(store, ends, seed)
    assert np.array_equal(other.times, store.times)
    for u, end in enumerate(ends):
        at = int(store.offsets[u])
        for begin, stop in ((at, at + int(end)), (at + int(end), int(store.offsets[u + 1]))):
            part = slice(begin, stop)
            assert sorted(other.items[part]) == sorted(store.items[part])
            for moment in set(store.times[part].tolist()) - {NO_TIME}:
                # Of one run: equal times that an unknown time stands between are two.
                at_once = [e for e in range(begin, stop) if store.times[e] == moment]
                if at_once[-1] - at_once[0] == len(at_once) - 1:
                    assert sorted(other.items[at_once]) == sorted(store.items[at_once])
            for e in range(begin, stop):
                if store.times[e] == NO_TIME:
                    assert other.items[e] == store.items[e]
    distinct = HistoryStore.from_lists([[1, 2, 3]], times=[[1, 2, 3]])
    assert np.array_equal(other_tie_order(distinct, np.array([1]), seed).items, distinct.items)


def test_tie_orders_differ_by_seed_and_not_by_asking():
    store = random_store(1, users=40, span=3, unknown=0.0)
    ends = leave_one_out(store).training_ends
    first = other_tie_order(store, ends, 1)
    assert np.array_equal(first.items, other_tie_order(store, ends, 1).items)
    assert not np.array_equal(first.items, other_tie_order(store, ends, 2).items)
    assert not np.array_equal(first.items, store.items)


def test_answers_that_can_move_are_those_that_some_order_moves():
    for seed in range(8):
        store = random_store(seed)
        split = leave_one_out(store, 5)
        first = store.offsets[split.test.users] + split.test.target_begins
        # Every event is told apart, so that a move of equal items is seen too.
        told = replace(store, items=np.arange(store.events, dtype=np.int32))
        moved = np.zeros(len(first), dtype=bool)
        for order in range(40):
            other = other_tie_order(told, split.training_ends, order)
            moved |= other.items[first] != told.items[first]
        assert audit.answers_that_can_move(store, split) == moved.sum()
