"""Questions: where in a history we stand, and which events answer.

A question is `(user, history_end, target_begin, target_end)`: its input is the user's events
`[0, history_end)`, its answers are the events `[target_begin, target_end)`. A split is one training
end per user plus one table of questions per stage; nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np

from recsys.histories.spans import ragged
from recsys.histories.store import NO_TIME, HistoryStore
from recsys.logs.schema import parse_moment

Target = Literal["last", "first", "all", "successive"]
REFITTED = "chosen on validation, then refitted on training + validation"


class SplitError(ValueError):
    """A log from which the asked-for split cannot be made."""


@dataclass(frozen=True)
class Questions:
    """N questions. Offsets count inside the user's own history.

    Attributes:
        users: int64 [N], user indices.
        history_ends: int64 [N], the input is the user's events `[0, history_end)`.
        target_begins: int64 [N], first answering event.
        target_ends: int64 [N], one past the last answering event.
    """

    users: np.ndarray
    history_ends: np.ndarray
    target_begins: np.ndarray
    target_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Questions:
        """The questions at the given rows."""
        return Questions(
            self.users[rows],
            self.history_ends[rows],
            self.target_begins[rows],
            self.target_ends[rows],
        )


def answer_events(store: HistoryStore, questions: Questions) -> tuple[np.ndarray, np.ndarray]:
    """(question, event of the store) of each answer, question by question."""
    begins = store.offsets[questions.users] + questions.target_begins
    return ragged(begins, questions.target_ends - questions.target_begins)


@dataclass(frozen=True)
class Split:
    """What may be learned from, and what is asked.

    Attributes:
        protocol: short name of the split, part of every metric's name.
        training_ends: int64 [users], training may see the user's events `[0, training_end)`.
        validation: questions for choosing (early stopping, tuning).
        test: questions for the final table.
        counts: what the split did, for the report.
        in_words: what is asked, for the legend of a table.
        refit_ends: int64 [users], where the user's test begins: what a model that is refitted on
            training + validation may see; None where nobody refits.
    """

    protocol: str
    training_ends: np.ndarray
    validation: Questions
    test: Questions
    counts: dict[str, int]
    in_words: str
    refit_ends: np.ndarray | None = None

    def refitted(self) -> Split:
        """The same test, with all that comes before it to learn from, and nothing to choose by."""
        assert self.refit_ends is not None
        nobody = np.zeros(0, dtype=np.int64)
        counts = {n: c for n, c in self.counts.items() if not n.startswith("validation_")}
        counts["training_events"] = int(self.refit_ends.sum())
        if "training_users" in counts:
            counts["training_users"] = int((self.refit_ends > 0).sum())
        return replace(
            self,
            training_ends=self.refit_ends,
            validation=Questions(nobody, nobody, nobody, nobody),
            counts=counts,
            in_words=f"{self.in_words}; {REFITTED}",
        )


def leave_one_out(store: HistoryStore, validation_users: int | None = None, seed: int = 0) -> Split:
    """Leave-one-out: the last event is the test answer, the second last the validation answer.

    For a user with n events the test question is (n−1, n−1, n), the validation question
    (n−2, n−2, n−1), and training ends at n−2. Users with fewer than 3 events only train.

    Args:
        store: the histories.
        validation_users: ask the validation question of this many users only, drawn by seed; the
            others train on their validation answer too (training ends at n−1). None asks all.
            Published figures mostly do this (gSASRec: 512 of 6,040), and it is worth several
            per cent: the newest training event is the most informative one.
        seed: of the draw.

    Raises:
        SplitError: nobody has 3 events, nothing is left to train on, or there is only one user.
    """
    lengths = store.lengths
    eligible = np.flatnonzero(lengths >= 3)
    if store.users < 2:
        raise SplitError(
            f"the log holds {store.users} user: a recommender learns from several, and "
            "leave-one-out asks each of them; check data.columns.user"
        )
    if len(eligible) == 0:
        raise SplitError(
            "leave-one-out needs users with at least 3 events (training, validation, test); "
            f"the longest of {store.users:,} histories has {int(lengths.max(initial=0))}"
        )
    if validation_users is not None and validation_users < 1:
        raise SplitError(
            f"split.validation_users must be 'all' or at least 1, not {validation_users}"
        )
    asked = eligible
    if validation_users is not None and validation_users < len(eligible):
        draw = np.random.Generator(np.random.PCG64([seed, 0x5A11D]))
        asked = np.sort(draw.choice(eligible, size=validation_users, replace=False))
    refit_ends = lengths.copy()
    refit_ends[eligible] -= 1
    training_ends = refit_ends.copy()
    training_ends[asked] -= 1
    if training_ends.max() < 2:
        raise SplitError(
            "after leave-one-out nobody has two training events, so there is nothing to learn "
            f"from: the longest of {store.users:,} histories has {int(lengths.max())} events; it "
            "takes longer ones, or split.validation_users=N, which asks only N users to validate"
        )
    return Split(
        protocol="loo",
        training_ends=training_ends,
        validation=Questions(asked, lengths[asked] - 2, lengths[asked] - 2, lengths[asked] - 1),
        test=Questions(eligible, lengths[eligible] - 1, lengths[eligible] - 1, lengths[eligible]),
        counts={
            "users": store.users,
            "users_only_training": int(store.users - len(eligible)),
            "training_events": int(training_ends.sum()),
            "validation_questions": len(asked),
            "test_questions": len(eligible),
        },
        in_words="leave-one-out: each user's last event",
        refit_ends=refit_ends,
    )


def user_share(store: HistoryStore, share: float = 0.1) -> Split:
    """The newest share of each user's own events is the test, the same number before it validation.

    A user with n events has k = max(1, ⌈n · share⌉). The test question is (n−k, n−k, n), the
    validation question (n−2k, n−2k, n−k), and training ends at n−2k. Users of whom training would
    keep nothing (n ≤ 2k) only train.

    Args:
        store: the histories.
        share: of each user's events, for each of test and validation; more than 0, less than ½.

    Raises:
        SplitError: the share is out of range, nobody has enough events, or nothing is left to
            train on.
    """
    if not 0 < share < 0.5:
        raise SplitError(f"split.share must be more than 0 and less than 0.5, not {share}")
    lengths = store.lengths
    # A share such as 0.07 is no binary fraction: 100 · 0.07 is 7.000000000000001, and means 7.
    answers = np.maximum(1, np.ceil(lengths * share - 1e-9).astype(np.int64))
    eligible = np.flatnonzero(lengths > 2 * answers)
    if len(eligible) == 0:
        raise SplitError(
            f"a split by share needs users with at least 3 events (training, validation, test); "
            f"the longest of {store.users:,} histories has {int(lengths.max(initial=0))}"
        )
    refit_ends = lengths.copy()
    refit_ends[eligible] -= answers[eligible]
    training_ends = refit_ends.copy()
    training_ends[eligible] -= answers[eligible]
    if training_ends.max() < 2:
        raise SplitError(
            "after the split by share nobody has two training events, so there is nothing to learn "
            f"from: the longest of {store.users:,} histories has {int(lengths.max())} events"
        )
    test_begins = lengths[eligible] - answers[eligible]
    val_begins = training_ends[eligible]
    return Split(
        protocol="share",
        training_ends=training_ends,
        validation=Questions(eligible, val_begins, val_begins, test_begins),
        test=Questions(eligible, test_begins, test_begins, lengths[eligible]),
        counts={
            "users": store.users,
            "users_only_training": int(store.users - len(eligible)),
            "training_events": int(training_ends.sum()),
            "validation_questions": len(eligible),
            "validation_events": int(answers[eligible].sum()),
            "test_questions": len(eligible),
            "test_events": int(answers[eligible].sum()),
        },
        in_words=f"the newest {share:g} of each user's own events, all of them answers",
        refit_ends=refit_ends,
    )


def global_time(
    store: HistoryStore,
    *,
    validation_cut: float | str,
    test_cut: float | str,
    target: Target,
    new_users: Literal["asked", "left_out"],
    test_until: float | str | None = None,
) -> Split:
    """Two moments cut all histories: nothing is learnt from what comes after the first.

    Training sees the events before the validation cut. A stage's window is the events from its cut
    on, the validation's up to the test cut, the test's up to `test_until`. With window [c, e) of a
    user the questions are

    * last: (e−1, e−1, e), the newest event, asked with everything before it;
    * first: (c, c, c+1);
    * all: (c, c, e), one question with all events of the window as answers;
    * successive: (p, p, p+1) for every p of the window.

    Users without events in a window are not asked there, users without any only train.

    A log ordered by an `order` column may lack times. An event without time lies between the known
    times around it. Users of whom it is not certain at which event a cut falls ask nothing, and
    train on what certainly came before the validation cut; they are counted as
    `users_cut_uncertain`.

    Args:
        store: the histories.
        validation_cut: a share of the events in time order, such as 0.8, or a moment (ISO 8601).
            The cut stands before the first event at it: equal times stay together.
        test_cut: the same, later.
        target: which events of a window are answers.
        new_users: whether to ask users who have no event before the stage's cut. With "first" and
            "all" their histories are empty.
        test_until: where the test ends, the same, later still; None: with the log.

    Raises:
        SplitError: the log has no times, a cut is out of range, the cuts leave training or a
            stage without anything, or an unknown target.
    """
    if target not in ("last", "first", "all", "successive"):
        raise SplitError(
            f"split.target must be 'last', 'first', 'all' or 'successive', not {target!r}"
        )
    if new_users not in ("asked", "left_out"):
        raise SplitError(f"split.new_users must be 'asked' or 'left_out', not {new_users!r}")
    if store.times is None or not (known := store.times != NO_TIME).any():
        raise SplitError(
            "a split by time needs times, and the log has none; check data.columns.time, or take "
            "split=loo or split=share"
        )
    known_times = store.times[known]
    first = moment_of_cut(known_times, validation_cut, "split.validation_cut")
    second = moment_of_cut(known_times, test_cut, "split.test_cut")
    if not first < second:
        raise SplitError(
            f"split.validation_cut={validation_cut} ({day_of(first)}) must be earlier than "
            f"split.test_cut={test_cut} ({day_of(second)})"
        )
    training_ends, first_certain = _events_before(store, known, first)
    test_begins, second_certain = _events_before(store, known, second)
    test_ends, third_certain = store.lengths, np.ones(store.users, dtype=bool)
    third = None
    if test_until is not None:
        third = moment_of_cut(known_times, test_until, "split.test_until")
        if not second < third:
            raise SplitError(
                f"split.test_cut={test_cut} ({day_of(second)}) must be earlier than "
                f"split.test_until={test_until} ({day_of(third)})"
            )
        test_ends, third_certain = _events_before(store, known, third)
    asked = first_certain & second_certain & third_certain
    stages = {}
    counts = {
        "users": store.users,
        "users_cut_uncertain": int((~asked).sum()),
        "training_users": int((training_ends > 0).sum()),
        "training_events": int(training_ends.sum()),
    }
    for stage, cut, begins, ends in (
        ("validation", first, training_ends, test_begins),
        ("test", second, test_begins, test_ends),
    ):
        users = np.flatnonzero(asked & (ends > begins))
        new = begins[users] == 0
        counts[f"{stage}_users_new"] = int(new.sum())
        if new_users == "left_out":
            users = users[~new]
        if len(users) == 0:
            raise SplitError(
                f"no {stage} questions: nobody who may be asked has events "
                + (f"from {day_of(first)} to {day_of(second)}" if cut == first else "")
                + (f"from {day_of(second)} on" if cut == second else "")
                + f"; the log's times run from {day_of(known_times.min())} to "
                f"{day_of(known_times.max())}; move split.validation_cut and split.test_cut"
            )
        questions = _window_questions(users, begins[users], ends[users], target)
        stages[stage] = questions
        counts[f"{stage}_users"] = len(users)
        counts[f"{stage}_questions"] = len(questions)
        counts[f"{stage}_answers"] = int((questions.target_ends - questions.target_begins).sum())
    if training_ends.max() < 2:
        raise SplitError(
            f"nobody has two events before split.validation_cut={validation_cut} "
            f"({day_of(first)}), so there is nothing to learn from"
        )
    answers = {
        "last": "each user's last event",
        "first": "each user's first event",
        "all": "all of each user's events",
        "successive": "each event",
    }[target]
    return Split(
        protocol=f"time-{target}",
        training_ends=training_ends,
        validation=stages["validation"],
        test=stages["test"],
        counts=counts,
        in_words=f"{answers} from {day_of(second)} "
        + ("on" if third is None else f"to {day_of(third)}")
        + f"; trained on what came before {day_of(first)}",
        refit_ends=test_begins,
    )


def moment_of_cut(known_times: np.ndarray, cut: float | str, setting: str) -> int:
    """Microseconds of a cut given as a share of the events or as a moment."""
    if isinstance(cut, str):
        return parse_moment(cut, setting)
    if not 0 < cut < 1:
        raise SplitError(
            f"{setting} must be a share of the events between 0 and 1, or a moment such as "
            f"2001-02-01, not {cut}"
        )
    rank = int(len(known_times) * cut + 1e-9)  # 0.29 · 100 is 28.999999999999996, and means 29
    return int(np.partition(known_times, rank)[rank])


def day_of(micros: int) -> str:
    """As short as it can be said.

    >>> day_of(0), day_of(90_000_000)
    ('1970-01-01', '1970-01-01T00:01:30')
    """
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(micros))
    return moment.replace(tzinfo=None).isoformat().removesuffix("T00:00:00")


def _events_before(
    store: HistoryStore, known: np.ndarray, cut: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each user: events certainly before the cut (int64), whether these are all of them (bool).

    They are where the event after the last one known to be earlier is the first one known to be
    not: nothing of unknown time stands between, and nothing is out of order.
    """
    assert store.times is not None
    begins, lengths = store.offsets[:-1], store.lengths
    before = np.flatnonzero(known & (store.times < cut))
    after = np.flatnonzero(known & (store.times >= cut))[::-1]
    earlier, later = np.zeros_like(lengths), lengths.copy()
    # Of several assignments to one place the last one stays.
    user = np.searchsorted(store.offsets, before, side="right") - 1
    earlier[user] = before + 1 - begins[user]
    user = np.searchsorted(store.offsets, after, side="right") - 1
    later[user] = after - begins[user]
    return np.minimum(earlier, later), earlier == later


def _window_questions(
    users: np.ndarray, begins: np.ndarray, ends: np.ndarray, target: Target
) -> Questions:
    """The questions of users whose window `[begin, end)` holds at least one event."""
    if target == "all":
        return Questions(users, begins, begins, ends)
    if target == "first":
        return Questions(users, begins, begins, begins + 1)
    if target == "last":
        return Questions(users, ends - 1, ends - 1, ends)
    row, at = ragged(begins, ends - begins)
    return Questions(users[row], at, at, at + 1)
