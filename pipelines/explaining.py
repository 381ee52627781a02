"""What a model looked at in some users' histories: the page of `train`, `evaluate`, `explain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.judging import Judge, say
from pipelines.result import without_nan
from pipelines.titles import Titles, item_titles

if TYPE_CHECKING:
    import numpy as np

    from pipelines.clicks import ClickJudge
    from pipelines.schemas import DataConfig
    from recsys.explain.explanation import Person
    from recsys.explain.summary import Summary
    from recsys.histories.click_batches import Columns
    from recsys.histories.clicks import ClickQuestions, HistoryView
    from recsys.histories.questions import Questions
    from recsys.histories.store import HistoryStore
    from recsys.tracking.run import TrackedRun

FORMAT, VERSION = "recsys-explanation", 1
OF_A_LIST = 3  # items explained for each user, where nobody says how many
SAMPLE = 256  # histories behind what is said of heads, where nobody says how many
QUESTIONS_AT_A_TIME = 1024
EVENTS_OF_A_SAMPLE = 1 << 20  # that a page on the way may have a model read

NOTES = [
    "A map is what one head of the model weighed each event by when it made the scores shown here; "
    "the weights come from the pass that made them. Colours are as strong as the square root of "
    "the weight, each map by its own largest; orange is a negative weight.",
    "The score drop is exact: the event is taken out of the history, the model is asked again, and "
    "the new score of the same item is taken from the old one. Green: the event spoke for the "
    "item. Orange: against it. Of a history longer than the model reads, the next older event "
    "comes into view instead.",
    "The rank correlation (Spearman's) says whether the events that a map weighs most are those "
    "whose removal costs the item most: 1 is the same order, 0 none. From .5 on the map tracks the "
    "model, from .2 loosely, and not at all within what chance reaches (95 of 100 maps without any "
    "relation). A map that does not track the model is no reason for a recommendation.",
]
NEXT_ITEM_NOTES = [
    "This model reads a history once, whatever item it scores: the maps are the same for every "
    "item of a list, the drops are not. In layers behind the first, events stand for what they "
    "have gathered from others; “rolled out” multiplies the layers, each half attention, half the "
    "event itself.",
    "Without an event the scores of other items change too: the place says where the item would "
    "then stand among all that can be recommended.",
]
CLICK_NOTES = [
    "Here the candidate looks at the history, so each candidate has maps of its own. Scores are "
    "logits: 0 is a probability of one half.",
]


@dataclass(frozen=True)
class Asked:
    """N users of a store, each at a point of the own history.

    Attributes:
        users: int64 [N], user indices.
        ends: int64 [N], the history is the user's events `[0, end)`.
        answers: int64 [N], the item that came next; 0 where none is known.
    """

    users: np.ndarray
    ends: np.ndarray
    answers: np.ndarray

    def take(self, rows: np.ndarray) -> Asked:
        """Some of them."""
        return Asked(self.users[rows], self.ends[rows], self.answers[rows])


@dataclass(frozen=True)
class Report:
    """What the explanations say.

    Attributes:
        lines: for the terminal.
        page: HTML that stands alone.
        values: everything but the maps of whole histories, as plain values.
        correlations: of each map that has one, the mean rank correlation with the score drops.
    """

    lines: list[str]
    page: str
    values: dict[str, Any]
    correlations: dict[str, float]

    def keep(self, tracked: TrackedRun) -> None:
        """Leaves page and numbers with a run."""
        tracked.artifact_text("explain.html", self.page)
        tracked.artifact_json("explain.json", without_nan(self.values))


def explain_sample(
    name: str, model: Any, judge: Judge | ClickJudge, data: DataConfig, tracked: TrackedRun
) -> None:
    """Explains a sample of a run's test questions, and leaves the page with the run.

    A model that cannot be explained is no error here: why is said in a line.

    Args:
        name: of the model.
        model: in evaluation mode.
        judge: whose questions they are.
        data: of the store.
        tracked: the run.
    """
    from recsys.explain.attention_weights import NoAttentionError, check_attention

    count = judge.evaluation.explained_users
    if count == 0:
        return
    try:
        check_attention(model, name)
        titles = item_titles(data, judge.store)
        if isinstance(judge, Judge):
            asked = first_asked(judge.split.test, judge.store)
            count = affordable(model, asked.ends, count)
            people = explain_lists(
                model, judge, asked.take(by_length(asked.ends, count, 0)), titles, OF_A_LIST
            )
            summary = sum_up_lists(model, judge.store, asked.take(drawn(asked.ends, SAMPLE, 0)))
        else:
            test, view = judge.split.test, judge.split.view
            groups = first_candidates(test)
            ends = test.history_ends[[rows[0] for rows in groups]]
            count = affordable(model, ends, count)
            chosen = [groups[row] for row in by_length(ends, count, 0)]
            people = explain_candidates(
                model, view, judge.columns, test, chosen, outcomes(test), titles, OF_A_LIST
            )
            rows = [groups[row][0] for row in drawn(ends, SAMPLE, 0)]
            summary = sum_up_candidates(model, view, judge.columns, test, rows)
    except NoAttentionError as error:
        say(f"explain.html is left out: {error}")
        return
    legend = f"{judge.legend} · test/{judge.protocol}"
    make_report(f"{name} on {data.name}, explained", legend, people, summary, titles).keep(tracked)


# ---------------------------------------------------------------------------------------------
# Whom to explain


def affordable(model: Any, ends: np.ndarray, count: int) -> int:
    """How many histories can be explained in a few seconds: fewer where they are long.

    Args:
        model: that is asked again without each event.
        ends: int64 [N], lengths of the histories.
        count: wanted.

    Raises:
        NoAttentionError: not even one.
    """
    from recsys.explain.attention_weights import NoAttentionError

    longest = int(ends.max(initial=1))
    longest = max(min(longest, model.max_length or longest), 1)
    few = EVENTS_OF_A_SAMPLE // longest**2
    if few == 0:
        raise NoAttentionError(
            f"to ask again without each of {longest:,} events takes long; "
            "python -m pipelines.explain does it"
        )
    return min(count, few)


def by_length(ends: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of a sample of histories of all lengths: one drawn of each of `count` equal parts.

    Args:
        ends: int64 [N], lengths of the histories; empty ones are not drawn.
        count: of the sample, at most.
        seed: of the draw.

    Raises:
        NoAttentionError: all histories are empty.
    """
    import numpy as np

    order = _with_events(ends)
    order = order[np.argsort(ends[order], kind="stable")]
    draw = np.random.Generator(np.random.PCG64([seed, 0xE4]))
    parts = np.array_split(order, min(count, len(order)))
    return np.array([part[draw.integers(len(part))] for part in parts])


def drawn(ends: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of a sample of the histories that have events, the shortest first.

    Args:
        ends: int64 [N], lengths of the histories.
        count: of the sample, at most.
        seed: of the draw.

    Raises:
        NoAttentionError: all histories are empty.
    """
    import numpy as np

    rows = _with_events(ends)
    draw = np.random.Generator(np.random.PCG64([seed, 0xE5]))
    rows = draw.permutation(rows)[:count]
    return rows[np.argsort(ends[rows], kind="stable")]


def _with_events(ends: np.ndarray) -> np.ndarray:
    import numpy as np

    from recsys.explain.attention_weights import NoAttentionError

    rows = np.flatnonzero(ends > 0)
    if len(rows) == 0:
        raise NoAttentionError(
            f"all of the {len(ends):,} histories are empty: there is nothing to look at"
        )
    return rows


def first_asked(questions: Questions, store: HistoryStore) -> Asked:
    """Each user at the first of the own questions, and what came then."""
    import numpy as np

    order = np.lexsort((questions.history_ends, questions.users))
    users, first = np.unique(questions.users[order], return_index=True)
    rows = order[first]
    places = store.offsets[users] + questions.target_begins[rows]
    return Asked(users, questions.history_ends[rows], store.items[places].astype(np.int64))


def first_candidates(questions: ClickQuestions) -> list[np.ndarray]:
    """Rows of the candidates that each user was asked about first, with one history, user by user.

    Those of one request, where there are requests.
    """
    import numpy as np

    order = np.lexsort((questions.requests, questions.history_ends, questions.users))
    keys = np.column_stack(
        [questions.users[order], questions.history_ends[order], questions.requests[order]]
    )
    _, begins = np.unique(keys[:, 0], return_index=True)
    groups = []
    for begin, end in zip(begins, [*begins[1:], len(order)], strict=True):
        same = (keys[begin:end] == keys[begin]).all(1)
        groups.append(order[begin:end][same])
    return groups


def outcomes(questions: ClickQuestions) -> list[str]:
    """What became of each candidate."""
    return ["taken" if label > 0 else "not taken" for label in questions.labels]


# ---------------------------------------------------------------------------------------------
# Models of the next item


def explain_lists(model: Any, judge: Judge, asked: Asked, titles: Titles, k: int) -> list[Person]:
    """Each user's list, and what came next where it is known, explained.

    Args:
        model: in evaluation mode, with attention.
        judge: whose store it is, and whether seen items are left out.
        asked: whom to explain.
        titles: of the items.
        k: length of the lists.

    Raises:
        NoAttentionError: the model reads more events than fit.
    """
    import numpy as np

    from recsys.explain import explanation as explaining
    from recsys.histories.batches import history_batch
    from recsys.serving.recommender import Recommender

    store, people = judge.store, []
    recommender = Recommender(
        model, store.item_vocabulary, name="", tie_seed=judge.evaluation.tie_seed
    )
    top = recommender.top_k(store, asked.users, asked.ends, k=k, filter_seen=judge.filter_seen)
    for row, raw in enumerate(store.user_vocabulary.raw(asked.users).to_list()):
        user, end, answer = int(asked.users[row]), int(asked.ends[row]), int(asked.answers[row])
        events = store.history(user, end).astype(np.int64)
        listed = [int(item) for item in top.items_NK[row] if item]
        roles = dict.fromkeys(listed, "recommended")
        if answer:
            roles[answer] = "recommended, and came next" if answer in roles else "came next"
        items_K = np.array(list(roles))
        found = None
        if end:
            one_more = None if model.max_length is None else model.max_length + 1
            history = history_batch(store, asked.users[[row]], asked.ends[[row]], one_more)
            seen = np.unique(events) if judge.filter_seen else events[:0]
            found = explaining.explain_next_item(model, history, items_K, seen)
        view = events[-(model.max_length or end) :] if end else events
        people.append(_person(store, titles, raw, view, end, items_K, list(roles.values()), found))
    return people


def sum_up_lists(model: Any, store: HistoryStore, asked: Asked) -> Summary:
    """What the heads look at in these histories, none of which is empty.

    Args:
        model: in evaluation mode, with attention.
        store: the histories.
        asked: whose, the shortest first.
    """
    from recsys.explain.attention_weights import attend, map_names
    from recsys.explain.summary import summarise
    from recsys.histories.batches import history_batch

    maps, names = [], []
    for rows in _some(asked.ends, model.max_length):
        batch = history_batch(store, asked.users[rows], asked.ends[rows], model.max_length)
        attended = attend(model, batch)
        maps += [attended.maps(row) for row in range(len(attended.lengths))]
        names = map_names(attended.weights)
    return summarise(names, maps)


def _some(ends: np.ndarray, max_length: int | None) -> Iterator[slice]:
    """Rows that go through a model together, their lengths ascending."""
    from recsys.explain.attention_weights import LARGEST_MAPS

    begin = 0
    while begin < len(ends):
        end = begin + 1
        while end < len(ends):
            longest = min(int(ends[end]), max_length or int(ends[end]))
            if (end + 1 - begin) * longest**2 > LARGEST_MAPS:
                break
            end += 1
        yield slice(begin, end)
        begin = end


# ---------------------------------------------------------------------------------------------
# Rankers


def explain_candidates(
    model: Any,
    view: HistoryView,
    columns: Columns,
    questions: ClickQuestions,
    groups: Sequence[np.ndarray],
    roles: Sequence[str],
    titles: Titles,
    k: int,
) -> list[Person]:
    """Candidates of each user, explained.

    Args:
        model: a ranker in evaluation mode, with attention.
        view: the histories.
        columns: the fields.
        questions: that hold the candidates.
        groups: of each user, rows of candidates with one history.
        roles: of each question, why it is asked.
        titles: of the items.
        k: how many of each user: those with the highest scores, and one that was taken if any was.
    """
    import numpy as np

    from recsys.evaluation.click_scores import score_clicks
    from recsys.explain.explanation import explain_clicks
    from recsys.histories.click_batches import click_batch

    length, people = model.max_length, []
    for group in groups:
        scores = score_clicks(model, view, questions.take(group), columns, length)
        best = group[np.argsort(-scores, kind="stable")]
        rows = best[:k]
        taken = best[questions.labels[best] > 0]
        if len(taken) and taken[0] not in rows:
            rows = np.append(rows[:-1], taken[0])
        asked = questions.take(rows)
        user, end = int(asked.users[0]), int(asked.history_ends[0])
        found = None
        if end:
            found = explain_clicks(model, click_batch(view, asked, columns, length + 1), length)
        begin = view.offsets[user] + max(end - length, 0)
        people.append(
            _person(
                view.store,
                titles,
                view.store.user_vocabulary.raw(np.array([user]))[0],
                view.items[begin : view.offsets[user] + end].astype(np.int64),
                end,
                asked.candidates,
                [roles[row] for row in rows],
                found,
            )
        )
    return people


def sum_up_candidates(
    model: Any,
    view: HistoryView,
    columns: Columns,
    questions: ClickQuestions,
    rows: Sequence[int],
) -> Summary:
    """What the heads look at in the histories of these questions, none of which is empty."""
    import numpy as np

    from recsys.explain.attention_weights import attend, map_names
    from recsys.explain.summary import summarise
    from recsys.histories.click_batches import click_batch

    maps, names = [], []
    for begin in range(0, len(rows), QUESTIONS_AT_A_TIME):
        some = questions.take(np.array(rows[begin : begin + QUESTIONS_AT_A_TIME]))
        attended = attend(model, click_batch(view, some, columns, model.max_length))
        maps += [attended.maps(row) for row in range(len(some))]
        names = map_names(attended.weights)
    return summarise(names, maps)


# ---------------------------------------------------------------------------------------------
# The page


def _person(
    store: HistoryStore,
    titles: Titles,
    raw: Any,
    view: np.ndarray,
    length: int,
    items_K: np.ndarray,
    roles: Sequence[str],
    found: Any,
) -> Person:
    from recsys.explain.explanation import Item, Person

    def named(items: np.ndarray) -> Iterator[tuple[Any, str]]:
        return zip(store.item_vocabulary.raw(items).to_list(), titles.of(items), strict=True)

    asked = [Item(*name, role) for name, role in zip(named(items_K), roles, strict=True)]
    if found is None:  # who has no history is not asked by the model
        asked = []
    return Person(raw, list(named(view)), length, asked, found)


def make_report(
    title: str,
    legend: str,
    people: Sequence[Person],
    summary: Summary,
    titles: Titles,
) -> Report:
    """Page, numbers and lines of these explanations.

    Args:
        title: of the page.
        legend: the line below it, which says what was asked.
        people: whose histories are explained.
        summary: of more histories.
        titles: of the items.
    """
    from recsys.explain.explanation import mean_correlations
    from recsys.explain.page import page

    explained = [person.explanation for person in people if person.explanation is not None]
    found = mean_correlations(people)
    lines = in_short(found, len(explained))
    notes = [*NOTES, f"Items are shown by {titles.source}."]
    if explained:
        mismatch = max(explanation.mismatch for explanation in explained)
        notes[1:1] = NEXT_ITEM_NOTES if explained[0].layers else CLICK_NOTES
        notes.append(
            "The scores of the pass that gave the weights differ from those the model gives where "
            f"it is used by {mismatch:.1g} at most."
        )
    values = {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "in_words": legend,
        "in_short": lines,
        "maps": explained[0].names if explained else summary.names,
        "mean_correlations": [
            {"map": name, "users": users, **_as_values(one)} for name, one, users in found
        ],
        "users": [person_values(person) for person in people],
        "sample": {
            "histories": summary.histories,
            "maps": summary.names,
            "mean_weight_by_steps_back": _rounded(summary.recency_MS),
            "equal_weights_by_steps_back": _rounded(summary.equal_S),
            "histories_by_steps_back": summary.counts_S.tolist(),
            "similarity": _rounded(summary.similarity_MM),
        },
    }
    correlations = {name: one.value for name, one, _ in found if one.value is not None}
    return Report(lines, page(title, legend, lines, people, summary, notes), values, correlations)


def in_short(found: Sequence[tuple[str, Any, int]], users: int) -> list[str]:
    """What the correlations mean, a sentence a line: which maps may be read, which not."""
    from recsys.explain.page import short_number

    defined = [(name, one) for name, one, _ in found if one.value is not None]
    if not defined:
        why = found[0][1].undefined if found else "no user has a history"
        return [f"Whether the attention tracks the model cannot be judged: {why}."]
    said = []
    for verdict in ("tracks the model", "tracks the model loosely"):
        good = [f"{n} ({short_number(one.value)})" for n, one in defined if one.verdict == verdict]
        if good:
            how = "loosely" if verdict.endswith("loosely") else "well"
            said.append(f"Goes {how} with what moves the scores: {', '.join(good)}.")
    bad = [
        f"{n} ({short_number(one.value)})"
        for n, one in defined
        if not one.verdict.startswith("tracks")
    ]
    if bad:
        said.append(
            f"Not to be read as reasons, for they do not track the model: {', '.join(bad)}."
        )
    return [
        *said,
        f"(Mean rank correlation of attention and score drop over {users:,} "
        f"user{'s' if users != 1 else ''}.)",
    ]


def person_values(person: Person) -> dict[str, Any]:
    """What is shown of a user, as plain values; events oldest first."""
    values: dict[str, Any] = {
        "user": person.raw,
        "events": person.length,
        "read": [{"item": raw, "title": title} for raw, title in person.events],
        "items": [asdict(item) for item in person.asked],
    }
    explanation = person.explanation
    if explanation is None:
        return values
    removal = explanation.removal
    for number, item in enumerate(values["items"]):
        item["score"] = _rounded(removal.scores_K[number])
        if removal.places_K is not None and removal.places_KL is not None:
            item["place"] = int(removal.places_K[number])
            item["places_without"] = removal.places_KL[number].tolist()
        item["drops"] = _rounded(removal.drops_KL[number])
        item["correlations"] = [_as_values(one) for one in explanation.correlations(number)]
        if not explanation.layers:
            item["maps"] = _rounded(explanation.maps(number))
    if explanation.layers:
        values["maps"] = _rounded(explanation.maps(0))
    return values


def _as_values(one: Any) -> dict[str, Any]:
    return {**asdict(one), "verdict": one.verdict}


def _rounded(values: Any) -> Any:
    """As plain numbers of seven digits, which is what float32 holds."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if array.ndim:
        return [_rounded(part) for part in array]
    return float(f"{float(array):.7g}")
