"""Who becomes champion: laws of the rule, and how often it is wrong."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from recsys.evaluation.compare import Answers, CompareError
from recsys.evaluation.promotion import Decision, _careful, decide
from tests.evaluation.test_compare import clicks, frame

CHANCE = 2.5 * (0.05 * 0.95 / 200) ** 0.5  # of a rate of 5 % among 200


def answers(name: str, ndcg: np.ndarray, **columns) -> Answers:
    return Answers(name, "loo-full-unseen", frame(ndcg, **columns))


def half(n: int) -> dict[str, list[str]]:
    return {"cohort/device": ["phone" if i < n // 2 else "desk" for i in range(n)]}


def ranks(draw: np.random.Generator, n: int, hit: float) -> np.ndarray:
    rank = np.where(draw.random(n) < hit, draw.integers(1, 11, n), 100)
    return np.where(rank <= 10, 1 / np.log2(rank + 1.0), 0)


def pair(seed: int, n: int, worse: float) -> tuple[np.ndarray, np.ndarray]:
    """NDCGs of a challenger and a champion that answer 3 of 10 questions otherwise; the challenger
    is truly worse by `worse`."""
    draw = np.random.Generator(np.random.PCG64(seed))
    champion = ranks(draw, n, 0.3)
    challenger = np.where(draw.random(n) < 0.3, ranks(draw, n, 0.3), champion)
    # What is lost is lost in a few questions, as models lose it.
    return challenger - (draw.random(n) < 4 * worse) * 0.25, champion


def verdicts(decision: Decision) -> dict[str, str]:
    return {part.name: part.verdict for part in decision.parts}


def test_the_same_answers_are_promoted_whatever_the_margin():
    a = answers("A", pair(0, 2400, 0)[0], **half(2400))
    for margin in (0.0, 0.01):
        found = decide(a, replace(a, name="B"), "ndcg_10", cohorts=["device"], margin=margin)
        assert found.promoted
        assert [part.bound for part in found.parts] == [0, 0, 0]
        assert "overall and in 2 guarded parts" in found.reason


def test_one_question_that_differs_is_not_nothing():
    """Most draws hold a single win not at all or as a win: it must not pass as the same answers."""
    ndcg = np.zeros(1200)
    won = ndcg.copy()
    won[7] = 1.0
    assert not decide(answers("A", won), answers("B", ndcg), "ndcg_10").promoted
    assert not decide(answers("A", ndcg), answers("B", won), "ndcg_10").promoted
    assert decide(answers("A", ndcg), answers("B", won), "ndcg_10", margin=0.01).promoted


def test_worse_in_one_guarded_part_alone_is_refused_and_named():
    n = 2400
    challenger, champion = pair(0, n, 0)
    challenger[: n // 2] += 0.2  # better by far on the phone
    challenger[n // 2 :] -= 0.05
    a, b = (answers(name, ndcg, **half(n)) for name, ndcg in (("A", challenger), ("B", champion)))
    found = decide(a, b, "ndcg_10", cohorts=["device"])
    expected = {"overall": "holds", "device phone": "holds", "device desk": "not shown"}
    assert verdicts(found) == expected
    assert not found.promoted
    assert "device desk (-0.0" in found.reason and "phone" not in found.reason
    assert decide(a, b, "ndcg_10").promoted  # nobody guarded the desk


def test_better_by_far_on_too_few_questions_is_refused():
    found = decide(answers("A", np.ones(999)), answers("B", np.zeros(999)), "ndcg_10")
    assert not found.promoted
    assert found.reason.startswith("too few: 999 questions of 999 users, and a verdict takes 1,000")


def test_many_questions_of_few_people_are_too_few():
    people = pl.Series("user", np.arange(1200) % 99)
    a, b = (
        replace(made, frame=made.frame.with_columns(people))
        for made in (answers("A", np.ones(1200)), answers("B", np.zeros(1200)))
    )
    assert "1,200 questions of 99 users" in decide(a, b, "ndcg_10").reason


def test_parts_with_too_few_are_listed_and_stand_in_nobodys_way():
    n = 1200  # 400 repeats, 800 new
    challenger, champion = np.ones(n), np.zeros(n)
    challenger[::3] = -1.0  # of the repeats
    found = decide(answers("A", challenger), answers("B", champion), "ndcg_10", cohorts=["repeat"])
    assert found.promoted
    _, new, repeat = found.parts
    assert (new.verdict, repeat.verdict) == ("not judged", "not judged")
    assert repeat.ahead == -1 and repeat.bound is None and repeat.p_holm is None
    assert repeat.why.startswith("too few: 400 questions")
    assert found.reason.endswith("overall; 2 guarded parts not judged")


def test_a_part_that_is_everything_is_no_second_test():
    columns = {"cohort/device": ["phone"] * 1200}
    a, b = (answers(name, np.ones(1200), **columns) for name in "AB")
    assert verdicts(decide(a, b, "ndcg_10", cohorts=["device"])) == {"overall": "holds"}


@pytest.mark.parametrize("seed", range(12))
def test_bounds_and_p_values_say_the_same(seed: int):
    n = 4000
    challenger, champion = pair(seed, n, 0.002)
    quarter = {"cohort/quarter": [f"q{i % 4}" for i in range(n)]}
    a, b = (answers(m, ndcg, **quarter) for m, ndcg in (("A", challenger), ("B", champion)))
    before = False
    for margin in (0.0, 0.005, 0.01, 0.02, 0.05):
        found = decide(a, b, "ndcg_10", cohorts=["quarter"], margin=margin, resamples=500)
        for part in found.parts:
            assert part.bound is not None and part.p_holm is not None
            assert (part.verdict == "holds") == (part.bound > -margin) == (part.p_holm <= 0.05)
            assert part.bound <= part.ahead
        assert found.promoted == (set(verdicts(found).values()) == {"holds"})
        assert found.promoted or not before  # a larger margin never refuses
        before = found.promoted
    assert before


def rate(worse_overall: float, worse_here: float, margin: float, n: int = 1000) -> float:
    """How many of 200 challengers are promoted: as much worse in one half of the questions."""
    count = 0
    for seed in range(200):
        challenger, champion = pair(seed, n, worse_overall)
        cohorts = []
        if worse_here:
            more = pair(seed + 1000, n // 2, worse_here)
            challenger, champion = np.append(challenger, more[0]), np.append(champion, more[1])
            cohorts = ["device"]
        columns = {"cohort/device": ["here" if i >= n else "there" for i in range(len(champion))]}
        a, b = (answers(m, x, **columns) for m, x in (("A", challenger), ("B", champion)))
        count += decide(
            a, b, "ndcg_10", cohorts=cohorts, margin=margin, resamples=200, seed=seed
        ).promoted
    return count / 200


def test_a_challenger_that_is_worse_by_the_margin_is_seldom_promoted():
    assert rate(0.01, 0, margin=0.01) <= 0.05 + CHANCE
    assert rate(0.03, 0, margin=0.01) <= 0.05


def test_a_challenger_that_is_as_good_is_promoted_where_the_margin_can_be_seen():
    assert rate(0.0, 0, margin=0.03) >= 0.9


def test_a_challenger_that_is_worse_in_a_guarded_part_alone_is_seldom_promoted():
    assert rate(0.0, 0.01, margin=0.01, n=2000) <= 0.05 + CHANCE


def test_rare_and_large_losses_are_read_as_bca_reads_them():
    draw = np.random.Generator(np.random.PCG64(3))
    u = draw.random(1500)
    moved = np.where(u < 0.01, -1.0, np.where(u < 0.11, 0.1, 0.0))
    a, b = answers("A", moved), answers("B", np.zeros(1500))
    found = decide(a, b, "ndcg_10", resamples=20_000).parts[0]
    ours = found.bound
    theirs, plain = (
        stats.bootstrap(
            (moved,),
            np.mean,
            method=method,
            alternative="greater",
            n_resamples=20_000,
            rng=np.random.Generator(np.random.PCG64(4)),
        ).confidence_interval.low
        for method in ("BCa", "percentile")
    )
    assert ours is not None
    assert ours < plain - 2 * abs(ours - theirs)
    gains = decide(answers("A", -moved), b, "ndcg_10", resamples=20_000).parts[0]
    assert gains.bound == pytest.approx(-np.quantile(-plain_draws(moved), 0.95), abs=2e-4)


def plain_draws(moved: np.ndarray) -> np.ndarray:
    """Means of −moved, in draws of its rows."""
    draw = np.random.Generator(np.random.PCG64(5))
    n = len(moved)
    return np.array([-moved[draw.integers(n, size=n)].mean() for _ in range(5000)])


@pytest.mark.parametrize("lean", [-0.15, -0.04, 0.0])
def test_reading_a_percentile_and_back(lean: float):
    for error in (0.0005, 0.01, 0.05, 0.3, 0.9):
        read = _careful(error, lean)
        assert read <= error
        assert _careful(read, lean, backwards=True) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("metric", ["auc", "gauc", "logloss"])
def test_clicks_are_judged_too(metric: str):
    good, poor = (
        replace(made, frame=made.frame.with_columns(**{k: pl.Series(v) for k, v in columns}))
        for made in (clicks("good", 0.5, 2400), clicks("poor", 3.0, 2400, seed=1))
        for columns in [half(2400).items()]
    )
    settings = {"cohorts": ["device"], "resamples": 200}
    won = decide(good, poor, metric, **settings)
    assert won.promoted and verdicts(won).keys() == {"overall", "device phone", "device desk"}
    lost = decide(poor, good, metric, **settings)
    assert not lost.promoted and set(verdicts(lost).values()) == {"not shown"}
    assert lost.parts[0].ahead == pytest.approx(-won.parts[0].ahead) != 0
    assert won.parts[0].ahead > 0  # less loss is more


def test_a_part_in_which_a_metric_is_not_defined_is_not_judged():
    made = clicks("A", 1.0, 2400)
    labels = made.frame["label"].to_list()[:1200] + [1] * 1200
    data = made.frame.with_columns(
        pl.Series("label", labels, dtype=pl.Int8),
        pl.Series("cohort/device", half(2400)["cohort/device"]),
    )
    a, b = replace(made, frame=data), replace(made, name="B", frame=data)
    found = decide(a, b, "auc", cohorts=["device"], resamples=200)
    by_name = {part.name: part for part in found.parts}
    assert by_name["device desk"].why == "the metric is not defined here"
    assert by_name["device phone"].verdict == "holds" and found.promoted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"margin": -0.1}, "margin must be a number from 0, not -0.1"),
        ({"margin": float("nan")}, "margin must be a number from 0"),
        ({"level": 1.0}, "level must be between 0 and 1"),
        ({"metric": "hr_10"}, "metric=hr_10 is not among what A was measured by: ndcg_10"),
        ({"cohorts": ["repaet"]}, "not looked at by 'repaet'; did you mean 'repeat'?"),
        ({"cohorts": ["gender"]}, "not looked at by 'gender'; it has repeat, device; evaluate"),
        (
            {"cohorts": ["device"], "resamples": 50},
            "resamples=50 can show nothing of 3 differences at level 0.95: take at least 60",
        ),
    ],
)
def test_what_cannot_be_decided_is_refused(changes, words):
    a, b = (answers(name, np.ones(2400), **half(2400)) for name in "AB")
    given = {"metric": "ndcg_10", **changes}
    with pytest.raises(CompareError, match=words.replace("?", r"\?").replace("[", r"\[")):
        decide(a, b, **given)


def test_just_enough_draws_show_something():
    a, b = (answers(name, np.ones(2400), **half(2400)) for name in "AB")
    assert decide(a, b, "ndcg_10", cohorts=["device"], resamples=60).promoted


def test_other_questions_are_refused():
    with pytest.raises(CompareError, match="1,200 and 1,300 questions"):
        decide(answers("A", np.ones(1200)), answers("B", np.ones(1300)), "ndcg_10")
