"""The split audit: what a test's numbers cannot be trusted for, counted before anything is scored.

Each finding is a share of the training events, of the questions or of their answers, by the name
that a threshold and a metric bear. None of them is a bug by itself: leave-one-out looks into the
future by design, groceries are bought again. What matters is that it is said.

Dimensions: N questions, A answers of all questions together, T training events.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from recsys.histories.clicks import ClickSplit
from recsys.histories.first_events import FirstEvents
from recsys.histories.questions import Questions, Split, answer_events
from recsys.histories.store import NO_TIME, HistoryStore


class AuditError(ValueError):
    """A split beyond the thresholds that its user set, or a threshold of no finding."""


@dataclass(frozen=True)
class Finding:
    """One thing that was counted.

    Attributes:
        name: of the finding.
        count: how often.
        of: out of how many.
        in_words: what was counted, and of what.
    """

    name: str
    count: int
    of: int
    in_words: str

    @property
    def share(self) -> float:
        """Count out of all; 0 where there are none."""
        return self.count / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.in_words}: {self.share:.1%} ({self.count:,} of {self.of:,})"


NAMES = {
    "future": "training events later than a test question, over all pairs of the two",
    "future_questions": "test questions with any training event that is not earlier",
    "duplicates": "answers whose user, item and time stand in the same user's training too",
    "ties": "answers at the very time of an event that is none, the file's order deciding",
    "cold_users": "test questions of users without training events",
    "cold_items": "answers that no training event holds",
    "repeats": "answers that the history holds already",
}


def audit_split(store: HistoryStore, split: Split) -> list[Finding]:
    """What there is to know of a split's test.

    * future: of all pairs of a training event and a test question, those where the event is later
      than the question's first answer: how much of training lies in the questions' future.
    * future_questions: questions with at least one training event not earlier than their answer.
    * duplicates: answers that stand in the user's own training with the same time.
    * ties: answers with the same known time as the event just before the first answer of their
      question, or just behind the last one: which of these is an answer was decided by the order of
      the file.
    * cold_users, cold_items, repeats: as `NAMES` says.

    Args:
        store: the histories.
        split: of these.

    Returns:
        The findings; those about time are left out where the log has none.
    """
    timed = store.times is not None and bool((store.times != NO_TIME).any())
    in_training = np.zeros(store.catalogue_size, dtype=bool)
    learned_times, asked_times, answers = [_NOTHING], [_NOTHING], [_NOTHING]
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("duplicates", "ties", "repeats")}
    for begin, end in _blocks(store):
        part, ends = _people(store, begin, end), split.training_ends[begin:end]
        rows = np.flatnonzero((split.test.users >= begin) & (split.test.users < end))
        test = split.test.take(rows)
        test = replace(test, users=test.users - begin)
        owners = np.repeat(np.arange(part.users), part.lengths)
        learned = np.arange(part.events) - part.offsets[owners] < ends[owners]
        question, event = answer_events(part, test)
        in_training[part.items[learned]] = True
        answers.append(part.items[event])
        met = FirstEvents(part).places(owners[event], part.items[event])
        found["repeats"].append(met < test.history_ends[question])
        if not timed:
            continue
        times, pairs = np.asarray(part.times), owners * part.catalogue_size + part.items
        learned_times.append(times[learned])
        asked_times.append(times[part.offsets[test.users] + test.target_begins])
        known = times[event] != NO_TIME
        copies = _among(pairs[event], times[event], pairs[learned], times[learned]) & known
        found["duplicates"].append(copies)
        found["ties"].append(_tied_across(part, test, question, event))
    findings: list[Finding] = []
    if timed:
        findings += _future(np.concatenate(learned_times), np.concatenate(asked_times))
        findings += [_finding(name, np.concatenate(found[name])) for name in ("duplicates", "ties")]
    findings.append(_finding("cold_users", split.training_ends[split.test.users] == 0))
    findings.append(_finding("cold_items", ~in_training[np.concatenate(answers)]))
    findings.append(_finding("repeats", np.concatenate(found["repeats"])))
    return findings


_NOTHING = np.zeros(0, dtype=np.int64)
_BLOCK = 1 << 22  # events looked at together


def _blocks(store: HistoryStore) -> Iterator[tuple[int, int]]:
    """Users from, to: the next ones that have some million events together."""
    begin = 0
    while begin < store.users:
        enough = int(store.offsets[begin]) + _BLOCK
        end = max(begin + 1, int(np.searchsorted(store.offsets, enough, side="right")) - 1)
        yield begin, end
        begin = end


def _people(store: HistoryStore, begin: int, end: int) -> HistoryStore:
    """The histories of some users, numbered from 0."""
    first, last = int(store.offsets[begin]), int(store.offsets[end])
    times = None if store.times is None else store.times[first:last]
    offsets = np.asarray(store.offsets[begin : end + 1]) - first
    return replace(store, offsets=offsets, items=np.asarray(store.items[first:last]), times=times)


def audit_clicks(split: ClickSplit) -> list[Finding]:
    """What there is to know of a test of clicks; "answers" are the candidates that are asked about.

    Sampled negatives are left out. As `audit_split`, without ties: which of the events at one time
    were taken does not hang on their order.

    Args:
        split: of click questions.
    """
    training, test, view = split.training, split.test, split.view
    if split.negatives is not None:
        test = test.take(np.flatnonzero(test.labels == 1))  # the others were drawn by chance
    V = view.store.catalogue_size
    findings: list[Finding] = []
    if training.times is not None and test.times is not None and (test.times != NO_TIME).any():
        findings += _future(training.times, test.times)
        copies = _among(
            test.users * V + test.candidates,
            test.times,
            training.users * V + training.candidates,
            training.times,
        )
        findings.append(_finding("duplicates", copies & (test.times != NO_TIME)))
    findings.append(_finding("cold_users", ~np.isin(test.users, training.users)))
    findings.append(_finding("cold_items", ~np.isin(test.candidates, training.candidates)))
    viewed = replace(view.store, offsets=view.offsets, items=view.items)
    met = FirstEvents(viewed).places(test.users, test.candidates)
    findings.append(_finding("repeats", met < test.history_ends))
    return findings


def _finding(name: str, found: np.ndarray) -> Finding:
    return Finding(name, int(found.sum()), len(found), NAMES[name])


def _future(learned: np.ndarray, asked: np.ndarray) -> list[Finding]:
    """How much of training is later than what is asked, by times, `NO_TIME` where unknown."""
    learned = np.sort(learned[learned != NO_TIME])
    asked = asked[asked != NO_TIME]
    later = len(learned) - np.searchsorted(learned, asked, side="right")
    not_earlier = len(learned) - np.searchsorted(learned, asked, side="left")
    pairs = len(asked) * len(learned)
    return [
        Finding("future", int(later.sum()), pairs, NAMES["future"]),
        _finding("future_questions", not_earlier > 0),
    ]


def _among(
    pairs: np.ndarray, times: np.ndarray, known_pairs: np.ndarray, known_times: np.ndarray
) -> np.ndarray:
    """Bool: which (pair, time) are among the known ones."""
    rows = pl.DataFrame({"pair": pairs, "time": times})
    known = pl.DataFrame({"pair": known_pairs, "time": known_times}).unique()
    found = rows.join(
        known.with_columns(known=True), on=["pair", "time"], how="left", maintain_order="left"
    )
    among: np.ndarray = found["known"].fill_null(False).to_numpy()
    return among


def _tied_across(
    store: HistoryStore, questions: Questions, question: np.ndarray, event: np.ndarray
) -> np.ndarray:
    """Bool [A]: an event just outside the question's answers has the answer's known time."""
    times = np.asarray(store.times)
    begins = store.offsets[questions.users]
    tied = np.zeros(len(event), dtype=bool)
    for there_N, place_N in (
        (questions.target_begins > 0, begins + questions.target_begins - 1),
        (questions.target_ends < store.lengths[questions.users], begins + questions.target_ends),
    ):
        outside_N = np.where(there_N, times[np.where(there_N, place_N, 0)], NO_TIME)
        tied |= times[event] == outside_N[question]
    return tied & (times[event] != NO_TIME)


def answers_that_can_move(store: HistoryStore, split: Split) -> int:
    """How many test answers are another one in some order that `other_tie_order` makes.

    Those whose tied neighbour outside the question's answers was not trained on: what was trained
    on stays where it is.
    """
    times = np.asarray(store.times)
    question, event = answer_events(store, split.test)
    users = split.test.users
    begins, rest = store.offsets[users], store.offsets[users] + split.training_ends[users]
    before, behind = begins + split.test.target_begins - 1, begins + split.test.target_ends
    moves = np.zeros(len(event), dtype=bool)
    for there_N, place_N in (
        (before >= rest, before),
        (split.test.target_ends < store.lengths[users], behind),
    ):
        outside_N = np.where(there_N, times[np.where(there_N, place_N, 0)], NO_TIME)
        moves |= (times[event] == outside_N[question]) & (times[event] != NO_TIME)
    return int(moves.sum())


def check_thresholds(findings: Sequence[Finding], at_most: Mapping[str, float | None]) -> None:
    """Refuses a split beyond its user's thresholds.

    Args:
        findings: of `audit_split`.
        at_most: share that is still allowed, by name of the finding; None allows any.

    Raises:
        AuditError: naming each finding that is beyond, or a threshold of no finding, or one on
            times where the log has none.
    """
    shares = {finding.name: finding for finding in findings}
    beyond = []
    for name, limit in at_most.items():
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(NAMES)}"
            raise AuditError(f"audit: there is no finding '{name}'; {hint}")
        if limit is None:
            continue
        if not 0 <= limit <= 1:
            raise AuditError(f"audit.{name} must be a share from 0 to 1, not {limit}")
        if name not in shares:
            raise AuditError(
                f"audit.{name} is set, and this split has no such finding: it needs times"
                + (", or next-item questions" if name == "ties" else "")
            )
        if shares[name].share > limit:
            beyond.append(f"{shares[name]}, more than audit.{name}={limit:g}")
    if beyond:
        raise AuditError("the split fails its audit: " + "; ".join(beyond))


def other_tie_order(store: HistoryStore, training_ends: np.ndarray, seed: int) -> HistoryStore:
    """The same histories with events of equal time in another order.

    Events change places inside the training part of a history and inside the rest, never from one
    to the other, so that a trained model still has not seen what it is asked.

    Args:
        store: the histories, with times.
        training_ends: int64 [users], where the training part ends.
        seed: of the order.

    Raises:
        AuditError: the log has no times.
    """
    if store.times is None:
        raise AuditError("a log without times has no ties")
    times = np.asarray(store.times)
    owners = np.repeat(np.arange(store.users), store.lengths)
    places = np.arange(store.events) - store.offsets[owners]
    rest = places >= training_ends[owners]
    # Runs of equal time: an event of unknown time is a run of its own, wherever it stands.
    begins = np.ones(store.events, dtype=bool)
    begins[1:] = (
        (owners[1:] != owners[:-1])
        | (rest[1:] != rest[:-1])
        | (times[1:] != times[:-1])
        | (times[1:] == NO_TIME)
    )
    run = np.cumsum(begins)
    draw = np.random.Generator(np.random.PCG64([seed, 0x71E5])).random(store.events)
    order = np.lexsort((draw, run))

    def moved(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.asarray(array)[order]

    attributes = {
        key: attribute.take(order) if key.startswith("event.") else attribute
        for key, attribute in store.attributes.items()
    }
    return replace(
        store,
        items=np.asarray(store.items)[order],
        ratings=moved(store.ratings),
        labels=moved(store.labels),
        attributes=attributes,
    )
