"""Lists that another system made, asked the same questions: one row a listed item, as Parquet.

Columns `user` and `item` (raw ids), and one that orders a user's items: `rank` (1 is first) or
`score` (highest first). Rows of a user stand together. The file is read in pieces, so that the
lists of a million people fit into a small memory.

What a list does not hold was ranked nowhere: an answer beyond its end is a miss, and the protocol's
name says how long the lists are. Equal scores are settled as everywhere: the answer stands last.
Where seen items are no candidates they are taken out of the lists, and what stands behind moves up.

Dimensions: N questions, A answers of all questions together, R rows of a piece, L lists of a piece,
K list length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from recsys.evaluation.metrics import RankedAnswers
from recsys.evaluation.ranking import Ranking, question_answers, ranks_of_answers
from recsys.histories.questions import Questions
from recsys.histories.spans import different, ragged
from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary

ROWS = 4_000_000  # of a piece


class ListError(ValueError):
    """Lists that cannot be judged. The message names the file, the user and the row."""


@dataclass(frozen=True)
class _Piece:
    """Whole lists of some users.

    Attributes:
        users: int64 [L], indices.
        begins: int64 [L], where each list begins among the rows.
        lengths: int64 [L], of the lists.
        items: int64 [R], indices.
        places: int64 [R], 1 is the best, equal scores in tie order.
        at_least: int64 [R], how many rows of the list score no less: the place of the last equal.
        scores: float64 [R], as given, or the rank below zero.
        keys: uint64 [R], ascending: the list's number in this piece above, the item below.
        first_row: in the file, for messages.
    """

    users: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray
    items: np.ndarray
    places: np.ndarray
    at_least: np.ndarray
    scores: np.ndarray
    keys: np.ndarray
    first_row: int


def judge_lists(
    path: Path,
    store: HistoryStore,
    questions: Questions,
    *,
    filter_seen: bool,
    k: int,
    tie_seed: int = 0,
) -> Ranking:
    """What another system answered to N questions, one question a user.

    Args:
        path: the Parquet file.
        store: the histories the questions point into.
        questions: what was asked.
        filter_seen: take items of the question's own history out of its list; an answer among them
            is a miss, as it is for a model.
        k: length of the lists that are kept; none of them may be shorter than its user's rows
            allow.
        tie_seed: of the order among equal scores.

    Returns:
        As `rank` gives it; `counts` holds besides `listed` (rows about users who are asked),
        `listed_seen` (of them, items of the user's own history), `longest` (of the lists) and
        `users_not_asked` (whose lists answer no question).

    Raises:
        ListError: the file cannot be read, lacks a column, holds an id that the store lacks, an
            item twice in one list, two items on one rank, a score that is no number, a user in two
            places; or a user who is asked has no list, or two questions.
    """
    if len(np.unique(questions.users)) < len(questions):
        raise ListError(
            "lists answer one question a user, and this split asks some users several: take "
            "split=loo, split=share, or split.target=last, first or all"
        )
    N = len(questions)
    items_A, question_A, repeated = question_answers(store, questions)
    answer_begins_N = np.searchsorted(question_A, np.arange(N + 1))
    question_of_user = np.full(store.users, -1, dtype=np.int64)
    question_of_user[questions.users] = np.arange(N)
    at_least_A = np.zeros(len(items_A), dtype=np.int64)
    had_A = np.zeros(len(items_A), dtype=bool)
    lists_NK = np.zeros((N, k), dtype=np.int32)
    scores_NK = np.full((N, k), -np.inf, dtype=np.float32)
    lengths_N = np.zeros(N, dtype=np.int64)
    tie_V = store.item_vocabulary.tie_order(tie_seed)
    met = np.zeros(store.users, dtype=bool)
    listed_seen = 0
    for piece in _pieces(path, store.user_vocabulary, store.item_vocabulary, tie_V):
        _refuse_apart(path, store, piece, met)
        met[piece.users] = True
        question_L = question_of_user[piece.users]
        lists = np.flatnonzero(question_L >= 0)
        asked = question_L[lists]
        lengths_N[asked] = piece.lengths[lists]
        of_list, event = ragged(store.offsets[piece.users[lists]], questions.history_ends[asked])
        seen = different(_keys(lists[of_list], store.items[event].astype(np.int64)))
        seen_listed = seen[_among(seen, piece.keys)]
        listed_seen += len(seen_listed)
        stays_R = np.ones(len(piece.items), dtype=bool)
        if filter_seen and len(seen_listed):
            piece, stays_R = _without(piece, seen_listed)

        question_R = np.repeat(question_L, piece.lengths)
        kept = (piece.places <= k) & (question_R >= 0) & stays_R
        lists_NK[question_R[kept], piece.places[kept] - 1] = piece.items[kept]
        scores_NK[question_R[kept], piece.places[kept] - 1] = piece.scores[kept]

        of_list, answer = ragged(answer_begins_N[asked], np.diff(answer_begins_N)[asked])
        keys = _keys(lists[of_list], items_A[answer])
        hit = _among(keys, piece.keys)
        rows = _rows(piece, lists[of_list[hit]], items_A[answer[hit]])
        at_least_A[answer[hit]] = piece.at_least[rows]
        had_A[answer] = _among(keys, seen)
    if len(without := np.flatnonzero(lengths_N == 0)):
        user = store.user_vocabulary.raw(questions.users[without[:1]])[0]
        raise ListError(
            f"{path} has no list for {len(without):,} of the {N:,} users who are asked, such as "
            f"{user!r}; a list for each of them is needed"
        )
    filtered_A = had_A & filter_seen
    missed_A = (at_least_A == 0) | filtered_A
    # Those of one score have one number of rows that score no less.
    scores_A = np.where(missed_A, -np.inf, -at_least_A)
    ranks_A = ranks_of_answers(at_least_A, scores_A, question_A, tie_V[items_A])
    ranks_A[missed_A] = 0
    answers = RankedAnswers(ranks_A, question_A, N)
    counts = {
        "questions": N,
        "questions_cold": int((questions.history_ends == 0).sum()),
        "questions_filtered": int((answers.best == 0).sum()),
        "answers": len(items_A),
        "answers_filtered": int(filtered_A.sum()),
        "answers_repeated": repeated,
        "listed": int(lengths_N.sum()),
        "listed_seen": listed_seen,
        "longest": int(lengths_N.max()),
        "users_not_asked": int((met & (question_of_user < 0)).sum()),
    }
    return Ranking(answers, lists_NK, scores_NK, counts, items_A)


def _keys(lists: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Lists and items as one number: uint64."""
    return (lists.astype(np.uint64) << np.uint64(32)) | items.astype(np.uint64)


def _among(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Bool: which keys are among ascending ones."""
    if len(ascending) == 0:
        return np.zeros(len(keys), dtype=bool)
    at = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    found: np.ndarray = ascending[at] == keys
    return found


def _rows(piece: _Piece, lists: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The row of each item, which stands in the list beside it."""
    found = np.empty(len(lists), dtype=np.int64)
    ends = np.cumsum(piece.lengths[lists])
    begin = 0
    while begin < len(lists):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + ROWS, side="right")))
        row, at = ragged(piece.begins[lists[begin:end]], piece.lengths[lists[begin:end]])
        found[begin:end] = at[piece.items[at] == items[begin:end][row]]
        begin = end
    return found


def _without(piece: _Piece, keys: np.ndarray) -> tuple[_Piece, np.ndarray]:
    """The piece, as if these lists' items were not in it, and which rows stay."""
    lists, items = (keys >> np.uint64(32)).astype(np.int64), keys & np.uint64(0xFFFFFFFF)
    stays_R = np.ones(len(piece.items), dtype=bool)
    stays_R[_rows(piece, lists, items.astype(np.int64))] = False
    list_R = np.repeat(np.arange(len(piece.begins)), piece.lengths)
    order = np.lexsort((piece.places, list_R))
    gone_R = np.append(0, np.cumsum(~stays_R[order]))  # above each place, over all lists
    begins_R = piece.begins[list_R]
    placed = _keys(list_R[order], piece.places[order])

    def above(places_R: np.ndarray) -> np.ndarray:
        """How many rows of the list that go have this place or a better one."""
        at = np.searchsorted(placed, _keys(list_R, places_R), side="right")
        passed: np.ndarray = gone_R[at] - gone_R[begins_R]
        return passed

    places_R = piece.places - above(piece.places)
    at_least_R = piece.at_least - above(piece.at_least)
    return replace(piece, places=places_R, at_least=at_least_R), stays_R


def _pieces(
    path: Path, users: Vocabulary, items: Vocabulary, tie_V: np.ndarray
) -> Iterator[_Piece]:
    """The file in pieces that hold whole lists."""
    try:
        scanned = pl.scan_parquet(path)
        schema = scanned.collect_schema()
        rows = int(scanned.select(pl.len()).collect().item())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ListError(f"recommendations={path} cannot be read as Parquet: {error}") from error
    by = "rank" if "rank" in schema else "score"
    if missing := [name for name in ("user", "item", by) if name not in schema]:
        names = " and ".join("rank or score" if name == "score" else name for name in missing)
        raise ListError(f"{path} has no column {names}; it has {', '.join(schema)}")
    if not schema[by].is_numeric():
        raise ListError(f"{path}: column {by!r} holds {schema[by]}, not numbers")
    rest: pl.DataFrame | None = None
    for begin in range(0, rows, ROWS):
        frame = scanned.slice(begin, ROWS).select("user", "item", by).collect()
        first_row = begin
        if rest is not None:
            first_row -= len(rest)
            frame = pl.concat([rest, frame])
        rest = None
        if begin + ROWS < rows:
            # The last user's rows may go on in the next piece.
            whole = int(_firsts(frame["user"])[-1])
            frame, rest = frame[:whole], frame[whole:]
            if not len(frame):
                continue
        yield _checked(path, frame, by, first_row, users, items, tie_V)
    if rows == 0:
        raise ListError(f"{path} holds no rows")


def _firsts(users: pl.Series) -> np.ndarray:
    """int64: the rows at which another user begins."""
    changed = users.slice(1).ne_missing(users.slice(0, len(users) - 1)).to_numpy()
    return np.flatnonzero(np.append(True, changed))


def _checked(
    path: Path,
    frame: pl.DataFrame,
    by: str,
    first_row: int,
    users: Vocabulary,
    items: Vocabulary,
    tie_V: np.ndarray,
) -> _Piece:
    """A piece, its ids known, its order settled, nothing in it twice."""
    begins_L = _firsts(frame["user"])
    lengths_L = np.diff(np.append(begins_L, len(frame)))
    users_L, items_R = users.indices(frame["user"].gather(begins_L)), items.indices(frame["item"])
    for name, rows in (
        ("user", begins_L[users_L < 0]),
        ("item", np.flatnonzero(items_R < 0)),
    ):
        if len(rows):
            raise ListError(
                f"{path}: {name} {frame[name][int(rows[0])]!r} in row {first_row + rows[0] + 1:,} "
                "is not in the store: judge lists on the log (or the vocabulary) they were made "
                "from"
            )
    list_R = np.repeat(np.arange(len(begins_L)), lengths_L)
    values = frame[by]
    bad = values.is_null() | (~values.is_finite() if values.dtype.is_float() else False)
    if bad.any():
        row = int(bad.arg_true()[0])
        raise ListError(f"{path}: {by} {values[row]} in row {first_row + row + 1:,} is no number")

    def refuse_twice(keys: np.ndarray, what: Callable[[int], str]) -> np.ndarray:
        """The keys, ascending; or an error at the second of two equal ones."""
        ascending = np.sort(keys)
        if (ascending[1:] == ascending[:-1]).any():
            _, first = np.unique(keys, return_index=True)
            row = int(np.setdiff1d(np.arange(len(keys)), first)[0])
            raise ListError(
                f"{path}: user {frame['user'][row]!r} has {what(row)} twice "
                f"(row {first_row + row + 1:,})"
            )
        return ascending

    keys_R = refuse_twice(_keys(list_R, items_R), lambda row: f"item {frame['item'][row]!r}")
    if by == "rank":
        places_R = at_least_R = values.cast(pl.Int64).to_numpy()
        wrong = (values < 1) | (values.cast(pl.Int64) != values)
        if wrong.any():
            row = int(wrong.arg_true()[0])
            raise ListError(
                f"{path}: rank {values[row]} in row {first_row + row + 1:,} must be a whole number "
                "from 1"
            )
        scores_R = -places_R.astype(np.float64)
        if not _falls_or_begins(scores_R, begins_L):
            refuse_twice(_keys(list_R, places_R), lambda row: f"rank {places_R[row]}")
    else:
        scores_R = values.cast(pl.Float64).to_numpy()
        places_R, at_least_R = _by_score(scores_R, list_R, begins_L, tie_V[items_R])
    return _Piece(
        users_L, begins_L, lengths_L, items_R, places_R, at_least_R, scores_R, keys_R, first_row
    )


def _falls_or_begins(values_R: np.ndarray, begins_L: np.ndarray) -> bool:
    """Whether each value is smaller than the one before, of the same list."""
    falls = np.append(True, values_R[1:] < values_R[:-1])
    falls[begins_L] = True
    return bool(falls.all())


def _by_score(
    scores_R: np.ndarray, list_R: np.ndarray, begins_L: np.ndarray, tie_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places, and the last place of each one's equals."""
    in_file = np.arange(len(scores_R)) - begins_L[list_R] + 1
    if _falls_or_begins(scores_R, begins_L):
        return in_file, in_file
    order = np.lexsort((tie_R, -scores_R, list_R))
    places_R, at_least_R = np.empty((2, len(order)), dtype=np.int64)
    places_R[order] = in_file  # lists stand where they stood
    ends = np.append((np.diff(list_R) != 0) | (np.diff(scores_R[order]) != 0), True)
    last = np.flatnonzero(ends)
    at_least_R[order] = in_file[last[np.cumsum(ends) - ends]]
    return places_R, at_least_R


def _refuse_apart(path: Path, store: HistoryStore, piece: _Piece, met: np.ndarray) -> None:
    """Refuses a user whose rows stand in two places."""
    again = np.ones(len(piece.users), dtype=bool)
    again[np.unique(piece.users, return_index=True)[1]] = False
    if len(lists := np.flatnonzero(met[piece.users] | again)):
        user = store.user_vocabulary.raw(piece.users[lists[:1]])[0]
        raise ListError(
            f"{path}: the rows of user {user!r} stand in two places, again from row "
            f"{piece.first_row + piece.begins[lists[0]] + 1:,}; sort the file by user"
        )
