"""Questions: where in a history we stand, and which events answer.

A question is `(user, history_end, target_begin, target_end)`: its input is the user's events
`[0, history_end)`, its answers are the events `[target_begin, target_end)`. A split is one training
end per user plus one table of questions per stage; nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.histories.store import HistoryStore


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


@dataclass(frozen=True)
class Split:
    """What may be learned from, and what is asked.

    Attributes:
        protocol: short name of the split, part of every metric's name.
        training_ends: int64 [users], training may see the user's events `[0, training_end)`.
        validation: questions for choosing (early stopping, tuning).
        test: questions for the final table.
        counts: what the split did, for the report.
    """

    protocol: str
    training_ends: np.ndarray
    validation: Questions
    test: Questions
    counts: dict[str, int]


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
    training_ends = lengths.copy()
    training_ends[eligible] -= 1
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
    # A share such as 0.1 is no binary fraction: 70 · 0.1 is 7.000000000000001, and means 7.
    answers = np.maximum(1, np.ceil(lengths * share - 1e-9).astype(np.int64))
    eligible = np.flatnonzero(lengths > 2 * answers)
    if len(eligible) == 0:
        raise SplitError(
            f"a split by share needs users with at least 3 events (training, validation, test); "
            f"the longest of {store.users:,} histories has {int(lengths.max(initial=0))}"
        )
    training_ends = lengths.copy()
    training_ends[eligible] -= 2 * answers[eligible]
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
    )
