"""What `compare` says in the terminal and on its page, of made-up answers."""

import numpy as np
import polars as pl
import pytest

from pipelines.compare import in_html, in_text, moved_users, too_few
from recsys.evaluation.compare import Answers, compare


def answers(name: str, quality: float, n: int = 1200, users: int = 300) -> Answers:
    draw = np.random.Generator(np.random.PCG64(len(name)))
    labels = (np.random.Generator(np.random.PCG64(0)).random(n) < 0.5).astype(np.int8)
    frame = pl.DataFrame(
        {
            "user": np.arange(n) % users,
            "item": np.arange(n) % 9,
            "label": labels,
            "score": np.clip(quality * labels + draw.random(n) * (1 - quality), 0, 1),
            "history_length": np.ones(n, dtype=np.int64),
            "cohort/half": ["one", "other"] * (n // 2),
        }
    )
    return Answers(name, "clicks", frame)


@pytest.mark.parametrize("metric", ["auc", "logloss"])
def test_clicks_are_told_by_cohort_and_by_user(metric: str) -> None:
    reference, others = answers("ours", 0.4), [answers("weak", 0.1), answers("weaker", 0.01)]
    own, found = compare(reference, others, metric, resamples=200)
    moved = [moved_users(reference, other, metric, 2) for other in others]
    text = in_text(reference, own, found, moved, metric, "legend")
    assert "against weak, by cohort" in text and "half one" in text
    line = next(line for line in text.splitlines() if line.startswith("users who gain most"))
    assert line.startswith("users who gain most in logloss, against weak: ")
    assert line.count(" -.") == 2 and "rank" not in line
    page = in_html(reference, own, found, moved, metric, "legend")
    assert page.count("users who lose most in logloss") == 2 and "<th>rank" not in page
    assert page.count("by cohort") == 2


def test_without_users_nobody_is_named() -> None:
    reference, other = answers("ours", 0.4), answers("weak", 0.1)
    own, found = compare(reference, [other], "auc", resamples=60)
    moved = [moved_users(reference, other, "auc", 0)]
    assert "users who" not in in_text(reference, own, found, moved, "auc", "")
    assert "users who" not in in_html(reference, own, found, moved, "auc", "")


def test_what_there_is_too_little_of() -> None:
    assert "fewer than 1,000 questions" in too_few(answers("few", 0.4, n=998))
    assert too_few(answers("people", 0.4, users=50)) == (
        "too few: 50 users asked, and fewer than 100 give no verdict"
    )
