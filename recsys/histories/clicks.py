"""Click questions: will this user take this candidate, given what stands before it?

Any `Split` becomes click questions: every target event of a stage is a candidate, and its history
is the user's events strictly before it. What counts as an event of the history is the *view*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from recsys.histories.features import ClickRows
from recsys.histories.negatives import NegativeSampler
from recsys.histories.questions import Questions, Split, SplitError
from recsys.histories.store import HistoryStore

ViewKind = Literal["positives", "events", "none"]
_VALIDATION, _TEST, _TRAINING = 0, 1, 2  # streams of sampled negatives


@dataclass(frozen=True)
class ClickQuestions:
    """N candidates, each with a history. Offsets count inside the user's own history *view*.

    Attributes:
        users: int64 [N], user indices.
        history_ends: int64 [N], the history is the user's viewed events `[0, history_end)`.
        candidates: int64 [N], item indices.
        labels: float32 [N], 1 taken, 0 not.
        requests: int64 [N], equal for candidates that were shown together; -1 where unknown.
        rows: int64 [N], the row of the log (of the impressions, where they are a log of their own)
            that holds the question's context. Sampled negatives have that of their positive.
        times: int64 [N], when they are asked, microseconds since 1970 (`NO_TIME` where unknown), or
            None. Candidates of one request are asked at the time of its first.
    """

    users: np.ndarray
    history_ends: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray
    requests: np.ndarray
    rows: np.ndarray
    times: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> ClickQuestions:
        """The questions at the given places."""
        return ClickQuestions(
            self.users[rows],
            self.history_ends[rows],
            self.candidates[rows],
            self.labels[rows],
            self.requests[rows],
            self.rows[rows],
            None if self.times is None else self.times[rows],
        )


@dataclass(frozen=True)
class HistoryView:
    """The events that make histories; those of user u are `offsets[u] : offsets[u + 1]`.

    The newest m of them before a question are a slice, so no history is ever copied.

    Attributes:
        store: the histories it looks at.
        kind: "positives" (events labelled 1; all events where the log has no labels), "events" (all
            of them) or "none" (what a model reaches without histories).
        offsets: int64 [users + 1].
        items: int32 [viewed events], item indices ≥ 1.
        event_rows: int64 [viewed events], their places in the store, ascending; None where every
            event is viewed.
    """

    store: HistoryStore
    kind: ViewKind
    offsets: np.ndarray
    items: np.ndarray
    event_rows: np.ndarray | None = None

    @property
    def in_words(self) -> str:
        """What a history holds."""
        return "none" if self.kind == "none" else f"the earlier {self.kind}"

    def ends(self, users: np.ndarray, history_ends: np.ndarray) -> np.ndarray:
        """int64 [N]: how many viewed events stand among the users' events `[0, history_end)`."""
        if self.event_rows is None:
            return history_ends
        places = np.searchsorted(self.event_rows, self.store.offsets[users] + history_ends)
        return places - self.offsets[users]

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Places in the store of the viewed events at the given places of the view."""
        return places if self.event_rows is None else self.event_rows[places]


def history_view(store: HistoryStore, kind: ViewKind) -> HistoryView:
    """The view of the given kind.

    Raises:
        SplitError: another kind.
    """
    if kind not in ("positives", "events", "none"):
        raise SplitError(f"history is 'positives', 'events' or 'none', not {kind!r}")
    if kind == "none":
        nowhere = np.zeros(0, dtype=np.int64)
        return HistoryView(store, kind, np.zeros_like(store.offsets), store.items[:0], nowhere)
    if kind == "events" or store.labels is None:
        return HistoryView(store, kind, store.offsets, store.items)
    rows = np.flatnonzero(store.labels == 1)
    offsets = np.searchsorted(rows, store.offsets)
    return HistoryView(store, kind, offsets, store.items[rows], rows)


@dataclass(frozen=True)
class ClickSplit:
    """What may be learned from, and what is asked.

    Attributes:
        protocol: short name of the split, the view and the sampled negatives, if any.
        training: to learn from; the positives only where negatives are sampled.
        validation: for choosing.
        test: for the final table.
        view: the histories of all three.
        counts: what the split did, for the report.
        in_words: what is asked, for the legend of a table.
        negatives: draws the negatives of training, anew for each epoch; None where the log has
            its own.
    """

    protocol: str
    training: ClickQuestions
    validation: ClickQuestions
    test: ClickQuestions
    view: HistoryView
    counts: dict[str, int]
    in_words: str
    negatives: NegativeSampler | None = None

    @property
    def training_size(self) -> int:
        """Training questions of an epoch, sampled negatives included."""
        per_positive = 0 if self.negatives is None else self.negatives.per_positive
        return len(self.training) * (1 + per_positive)

    def training_questions(self, epoch: int) -> ClickQuestions:
        """The training questions of an epoch, counted from 0."""
        if self.negatives is None:
            return self.training
        return with_negatives(self.training, self.negatives, _TRAINING, epoch)


def click_split(
    store: HistoryStore,
    split: Split,
    *,
    history: ViewKind,
    skip_first: int = 0,
    negatives: NegativeSampler | None = None,
) -> ClickSplit:
    """Click questions from the events of a log.

    Of each stage every target event is a candidate; of training every event from the user's
    `skip_first`-th up to the end of training. Its history is what stands strictly before it: by
    position where the log has a column of order, else by time, so that events of the same moment
    are in none of each other's histories. Candidates without a label are left out and counted, and,
    where negatives are sampled, those of users who have every item that could be drawn.

    Args:
        store: the histories.
        split: what belongs to which stage; of one that is refitted, validation stays empty.
        history: which events make the histories, see `HistoryView`.
        skip_first: events at the start of each history that are no training candidates: little or
            nothing stands before them.
        negatives: for logs that hold positives only.

    Raises:
        SplitError: no negatives, neither in the log nor sampled; both; a stage without candidates;
            a store with impressions, which have splits of their own.
    """
    if store.impressions is not None:
        raise SplitError(
            "the store holds impressions, and they are what is asked: take impressions_by_time or "
            "impressions_by_user"
        )
    if skip_first < 0:
        raise SplitError(f"skip_first must be at least 0, not {skip_first}")
    view = history_view(store, history)
    starts = None if _in_order(store) else _moment_starts(store)
    everyone = np.arange(store.users)
    skipped = np.minimum(split.training_ends, skip_first)
    learned = Questions(everyone, skipped, skipped, split.training_ends)
    counts = {**split.counts, "first_events_skipped": int(skipped.sum()), "unlabelled_events": 0}
    stages: dict[str, ClickQuestions] = {}
    for name, asked in (
        ("training", learned),
        ("validation", split.validation),
        ("test", split.test),
    ):
        questions = _candidates(store, view, asked, starts)
        if store.labels is not None:
            known = np.flatnonzero(questions.labels >= 0)
            counts["unlabelled_events"] += len(questions) - len(known)
            questions = questions.take(known)
        if len(questions) == 0 and len(asked):
            raise SplitError(
                f"no candidate is left for {name}: of {store.users:,} users with at most "
                f"{int(store.lengths.max(initial=0)):,} events, "
                f"{counts['first_events_skipped']:,} first events were skipped and "
                f"{counts['unlabelled_events']:,} candidates have no label"
            )
        stages[name] = questions
    _check_negatives(stages, store, negatives)
    protocol = f"{split.protocol}-{history}"
    in_words = f"{split.in_words}; history: {view.in_words}"
    if negatives is not None:
        protocol += f"-{negatives.name}"
        in_words += (
            f"; {negatives.per_positive} negatives sampled for each positive, {negatives.sampling}"
        )
        _leave_out_undrawable(stages, counts, negatives)
        stages["validation"] = with_negatives(stages["validation"], negatives, _VALIDATION)
        stages["test"] = with_negatives(stages["test"], negatives, _TEST)
    for name, questions in stages.items():
        counts[f"{name}_candidates"] = len(questions)
        counts[f"{name}_positives"] = int(np.count_nonzero(questions.labels))
        counts[f"{name}_without_history"] = int(np.count_nonzero(questions.history_ends == 0))
    return ClickSplit(
        protocol,
        stages["training"],
        stages["validation"],
        stages["test"],
        view,
        counts,
        in_words,
        negatives,
    )


def with_negatives(
    questions: ClickQuestions, sampler: NegativeSampler, *stream: int
) -> ClickQuestions:
    """Each positive, followed by its sampled negatives; together they are one request.

    Args:
        questions: N positives.
        sampler: where the negatives come from.
        stream: names the draw, see `NegativeSampler.draw`.

    Returns:
        N · (1 + per_positive) questions.
    """
    each = 1 + sampler.per_positive
    repeated = questions.take(np.repeat(np.arange(len(questions)), each))
    candidates = np.column_stack([questions.candidates, sampler.draw(questions.users, *stream)])
    labels = np.zeros(candidates.shape, dtype=np.float32)
    labels[:, 0] = 1
    return replace(
        repeated,
        candidates=candidates.ravel(),
        labels=labels.ravel(),
        requests=np.repeat(np.arange(len(questions)), each),
    )


def feature_rows(view: HistoryView, questions: ClickQuestions) -> ClickRows:
    """The rows that features of these questions are fitted on, or counted in.

    Those of training are `feature_rows(split.view, split.training_questions(0))`.

    Args:
        view: the histories.
        questions: the questions.
    """
    longest = np.zeros(view.store.users, dtype=np.int64)
    np.maximum.at(longest, questions.users, questions.history_ends)
    owners = np.repeat(np.arange(view.store.users), np.diff(view.offsets))
    places = np.arange(len(view.items))
    return ClickRows(
        users=questions.users,
        items=questions.candidates,
        rows=questions.rows,
        events=view.rows(places[places - view.offsets[owners] < longest[owners]]),
    )


def _candidates(
    store: HistoryStore, view: HistoryView, asked: Questions, starts: np.ndarray | None
) -> ClickQuestions:
    """Every target event of the questions as a candidate."""
    lengths = asked.target_ends - asked.target_begins
    users = np.repeat(asked.users, lengths)
    before = np.cumsum(lengths) - lengths
    first = store.offsets[asked.users] + asked.target_begins
    rows = np.arange(int(lengths.sum())) + np.repeat(first - before, lengths)
    ends = rows if starts is None else starts[rows]
    labels = np.ones(len(rows), np.float32)
    if store.labels is not None:
        labels = store.labels[rows].astype(np.float32)
    return ClickQuestions(
        users=users,
        history_ends=view.ends(users, ends - store.offsets[users]),
        candidates=store.items[rows].astype(np.int64),
        labels=labels,
        requests=np.full(len(rows), -1, dtype=np.int64),
        rows=rows,
        times=None if store.times is None else store.times[rows],
    )


def _in_order(store: HistoryStore) -> bool:
    """Whether a place in the history says what came before, and not only the time."""
    return store.times is None or store.manifest.get("order") == "order"


def _moment_starts(store: HistoryStore) -> np.ndarray:
    """int64 [events]: the row of the user's first event of the same moment."""
    assert store.times is not None
    begins = np.zeros(store.events, dtype=bool)
    begins[1:] = store.times[1:] != store.times[:-1]
    begins[store.offsets[:-1][store.lengths > 0]] = True
    return np.maximum.accumulate(np.where(begins, np.arange(store.events), 0))


def check_classes(training: ClickQuestions, setting: str, remedy: str = "") -> None:
    """Training needs both classes.

    Args:
        training: the questions to learn from.
        setting: where the column of labels is named, for the message.
        remedy: what else would help, for the message.

    Raises:
        SplitError: all labels are alike.
    """
    positives, total = int(np.count_nonzero(training.labels)), len(training)
    if positives in (0, total):
        raise SplitError(
            f"all {total:,} training candidates have label {int(positives > 0)}: a model of clicks "
            f"learns from both classes; check {setting}{remedy}"
        )


def _leave_out_undrawable(
    stages: dict[str, ClickQuestions], counts: dict[str, int], negatives: NegativeSampler
) -> None:
    """Takes the positives that nothing can be told from out of all stages, and counts them."""
    users: set[int] = set()
    left_out = 0
    asked = {name for name, questions in stages.items() if len(questions)}
    for name, questions in stages.items():
        drawable = negatives.can_draw(questions.users)
        users.update(questions.users[~drawable].tolist())
        left_out += len(questions) - int(np.count_nonzero(drawable))
        stages[name] = questions.take(np.flatnonzero(drawable))
    counts["users_with_every_item"] = len(users)
    counts["positives_without_negatives"] = left_out
    for name, questions in stages.items():
        if len(questions) == 0 and name in asked:
            raise SplitError(
                f"no candidate is left for {name}: {left_out:,} positives of {len(users):,} users "
                "who have every item that could be drawn as a negative were left out"
            )


def _check_negatives(
    stages: dict[str, ClickQuestions], store: HistoryStore, negatives: NegativeSampler | None
) -> None:
    """Negatives come from the log or from sampling, and not from both."""
    training = stages["training"]
    if negatives is None:
        if store.labels is None:
            raise SplitError(
                "the log has no labels, so every event is a positive and there is nothing to tell "
                "it from: name the column in data.columns.label, or sample negatives"
            )
        remedy = ", or sample negatives" if training.labels.any() else ""
        check_classes(training, "data.columns.label", remedy)
        return
    total = sum(len(questions) for questions in stages.values())
    taken = sum(int(np.count_nonzero(questions.labels)) for questions in stages.values())
    if taken < total:
        raise SplitError(
            f"the log has negatives of its own ({total - taken:,} of {total:,} candidates have "
            "label 0), so none are sampled: leave negatives out, or ingest with "
            "data.positive_only=true"
        )
