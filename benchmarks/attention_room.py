r"""How much weighing the past could add to averaging it, on the ML-1M click table.

    python -m benchmarks.attention_room --data DIR
    python -m benchmarks.attention_room --data DIR --run RUN_ID   # a tracked run of mean pooling
    python -m benchmarks.attention_room --show benchmarks/results/*_attention_room.json

Boosted trees get the logit of a trained mean pooling, the length of the history, and how the past
items relate to the candidate: as the mean over the history, which pooling can say, or with the
greatest, the three greatest and the newest too, which takes attention. They learn on the validation
rows and are judged on the test rows. Two kinds of relation: the cosine of mean pooling's item
vectors, which is all that DIN could attend by, and counts of who liked both items in training,
which vectors of this width need not hold. Differences are paired on users, with 95 % intervals.

What the trees gain is no bound, but what a learner of another kind finds in the same inputs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.clicks import METRICS, better_of
from benchmarks.figures import Figure, of_interval, of_rounds
from benchmarks.quality import train
from benchmarks.record import circumstances, command_line, show_again, write
from pipelines.checking import build
from pipelines.clicks import ClickJudge, click_judge
from pipelines.ingest import make_store
from pipelines.paths import tracking_uri
from pipelines.schemas import TrainConfig
from recsys.evaluation.click_metrics import auc, gauc, logloss
from recsys.evaluation.click_scores import score_clicks
from recsys.evaluation.intervals import Metric, paired_bootstrap
from recsys.histories.click_batches import click_batch
from recsys.histories.clicks import ClickQuestions
from recsys.histories.features import FittedFeatures
from recsys.histories.store import open_store
from recsys.tracking.reading import load_run
from recsys.training.saved_model import load_model

TREE_SEEDS = (0, 1, 2)  # their mean answers
ROWS = 4096
SHRINK = 30.0  # people whose liking counts as average, beside those who are counted
BASE, MEAN, WEIGHED = "logit and length", "mean", "greatest and newest"
VECTORS, COUNTS = "vectors", "counts"


def main() -> None:
    """Trains where no run is given, grows the trees, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, help="folder with ml1m.parquet")
    parser.add_argument("--run", help="a tracked run of mean pooling; none: one is trained")
    parser.add_argument("--seed", type=int, default=1, help="of the model that is trained")
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    run_id = arguments.run or trained(arguments)
    stages = inputs(run_id)
    answers: dict[str, np.ndarray] = {}
    for name in stages["validation"]["inputs"]:
        answers[name] = grown(stages, name)
    label, user = stages["test"]["labels"], stages["test"]["users"]
    report = {
        **circumstances("attention_room"),
        "run": run_id,
        "rows": [
            {
                "inputs": name,
                "auc": auc(label, scores),
                "gauc": gauc(label, scores, user),
                "logloss": logloss(label, scores),
            }
            for name, scores in answers.items()
        ],
        "differences": [
            difference(label, user, a, b, answers)
            for a, b in (
                (f"{VECTORS}: {MEAN}", BASE),
                (f"{VECTORS}: {MEAN}, {WEIGHED}", f"{VECTORS}: {MEAN}"),
                (f"{COUNTS}: {MEAN}", BASE),
                (f"{COUNTS}: {MEAN}, {WEIGHED}", f"{COUNTS}: {MEAN}"),
            )
        ],
    }
    print(render(report), flush=True)
    write(report, "attention_room")


def trained(arguments: argparse.Namespace) -> str:
    """The run of mean pooling with the settings of `experiment=din_ml1m`."""
    path = (arguments.data or Path()) / "ml1m.parquet"
    if not path.is_file():
        sys.exit(f"there is no {path}: --data names the folder, or --run a tracked run")
    same = ["max_length=50", "width=32", "biases=true", "initial_scale=0.05", "activation=dice"]
    settings = ["experiment=din_ml1m", "model=mean_pooling", *(f"model.{key}" for key in same)]
    settings += ["objective.l2=0.8", f"data.path={path.resolve()}", "evaluation.baselines=false"]
    return str(train(settings, arguments.seed)["run_id"])


def inputs(run_id: str) -> dict[str, dict[str, Any]]:
    """Of validation and test: labels, users, and what the trees get, by name."""
    info = load_run(tracking_uri(), run_id)
    config = build(TrainConfig, yaml.safe_load(info.artifact("config.yaml").read_text()), str)
    store = open_store(make_store(config.data))
    folder = info.model()
    model: Any = load_model(folder)[0]
    judge = click_judge(config, store, features=FittedFeatures.load(folder / "features.json"))
    relations = {
        VECTORS: [cosines(model.inputs.items.weight.detach().float().numpy())],
        COUNTS: [*liked_together(judge)],
    }
    stages: dict[str, dict[str, Any]] = {}
    for stage, questions in (("validation", judge.split.validation), ("test", judge.split.test)):
        chances = score_clicks(
            model, judge.split.view, questions, judge.columns, config.model.max_length
        )
        logits = np.log(chances / (1 - chances))
        lengths = np.minimum(questions.history_ends, config.model.max_length)
        base = np.column_stack([logits, lengths])
        named = {BASE: base}
        for name, pairs in relations.items():
            found = [statistics(judge, questions, pair, config.model.max_length) for pair in pairs]
            means = np.column_stack([base, *(mean for mean, _ in found)])
            named[f"{name}: {MEAN}"] = means
            named[f"{name}: {MEAN}, {WEIGHED}"] = np.column_stack(
                [means, *(weighed for _, weighed in found)]
            )
        stages[stage] = {"labels": questions.labels, "users": questions.users, "inputs": named}
    return stages


def cosines(vectors_VD: np.ndarray) -> np.ndarray:
    """[V, V]: the cosine of each two items' vectors."""
    lengths_V1 = np.linalg.norm(vectors_VD, axis=1, keepdims=True)
    unit_VD = vectors_VD / np.maximum(lengths_V1, 1e-9)
    product_VV: np.ndarray = unit_VD @ unit_VD.T
    return product_VV


def liked_together(judge: ClickJudge) -> tuple[np.ndarray, np.ndarray]:
    """Two [V, V], past item by candidate, from the training questions of all people.

    How many liked both, over the root of how many liked either (cosine), and by how much those who
    liked the past item like the candidate more than people do on average (shrunk).
    """
    from scipy.sparse import csr_matrix

    asked = judge.split.training_questions(0)
    shape = (judge.store.users, judge.store.catalogue_size)
    rated = csr_matrix((np.ones(len(asked)), (asked.users, asked.candidates)), shape=shape)
    liked = csr_matrix(
        (asked.labels.astype(np.float64), (asked.users, asked.candidates)), shape=shape
    )
    likes_V, ratings_V = np.asarray(liked.sum(0)).ravel(), np.asarray(rated.sum(0)).ravel()
    average = likes_V.sum() / ratings_V.sum()
    share_V = (likes_V + 5 * average) / (ratings_V + 5)
    liked_liked, liked_rated = (liked.T @ liked).toarray(), (liked.T @ rated).toarray()
    cosine = liked_liked / np.sqrt(np.maximum(likes_V[:, None] * likes_V, 1))
    more = (liked_liked - liked_rated * share_V) / (liked_rated + SHRINK)
    return cosine, more


def statistics(
    judge: ClickJudge, questions: ClickQuestions, relation_VV: np.ndarray, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the relation of each past item to the candidate: the mean [N], and the rest [N, 4].

    The rest: the greatest, the mean of the three greatest, the newest, the mean of the newest five.
    Without a history: NaN, which the trees take as a value of its own.
    """
    means, rests = [], []
    for first in range(0, len(questions), ROWS):
        some = questions.take(np.arange(first, min(first + ROWS, len(questions))))
        batch = click_batch(judge.split.view, some, None, max_length)
        ids_I = batch.item_ids_I.numpy()
        past_BL, lengths_B = ids_I[batch.history_BL.numpy()], batch.lengths_B.numpy()
        values_BL = relation_VV[past_BL, some.candidates[:, None]]
        valid_BL = batch.valid_BL.numpy()
        newest_BL = valid_BL & (np.arange(valid_BL.shape[1]) >= lengths_B[:, None] - 5)
        falling_BL = -np.sort(-np.where(valid_BL, values_BL, -np.inf), axis=1)
        three_BL = falling_BL[:, :3]
        last_B = values_BL[np.arange(len(some)), np.maximum(lengths_B - 1, 0)]
        means.append(mean_over(values_BL, valid_BL))
        rests.append(
            np.column_stack(
                [
                    np.where(lengths_B > 0, falling_BL[:, 0], np.nan),
                    mean_over(three_BL, np.isfinite(three_BL)),
                    np.where(lengths_B > 0, last_B, np.nan),
                    mean_over(values_BL, newest_BL),
                ]
            )
        )
    return np.concatenate(means), np.concatenate(rests)


def mean_over(values_BL: np.ndarray, counted_BL: np.ndarray) -> np.ndarray:
    """[B]: the mean of what counts; NaN where nothing does."""
    counts_B = counted_BL.sum(1)
    sums_B = np.where(counted_BL, values_BL, 0).sum(1)
    found: np.ndarray = np.where(counts_B > 0, sums_B / np.maximum(counts_B, 1), np.nan)
    return found


def grown(stages: dict[str, dict[str, Any]], name: str) -> np.ndarray:
    """The trees' chances on the test rows."""
    chances = []
    for seed in TREE_SEEDS:
        trees = HistGradientBoostingClassifier(
            max_iter=300,
            learning_rate=0.06,
            max_leaf_nodes=15,
            min_samples_leaf=200,
            l2_regularization=1.0,
            early_stopping=True,
            validation_fraction=0.15,
            random_state=seed,
        )
        trees.fit(stages["validation"]["inputs"][name], stages["validation"]["labels"])
        chances.append(trees.predict_proba(stages["test"]["inputs"][name])[:, 1])
    mean: np.ndarray = np.mean(chances, axis=0)
    return mean


def difference(
    label: np.ndarray, user: np.ndarray, a: str, b: str, answers: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the trees with `a` have over those with `b`."""
    found: dict[str, Any] = {"pair": f"{a} − {b}"}
    for metric in get_args(Metric):
        interval = paired_bootstrap(label, user, answers[a], answers[b], metric=metric)
        found[metric] = [interval.estimate, interval.low, interval.high]
    return found


def figures(report: dict[str, Any]) -> list[Figure]:
    """The trees' metrics, and the paired differences."""
    found = [
        of_rounds(f"{row['inputs']}: {metric}", [row[metric]], better_of(metric))
        for row in report["rows"]
        for metric in METRICS
    ]
    for entry in report["differences"]:
        for metric in METRICS:
            estimate, low, high = entry[metric]
            name = f"{entry['pair']}: {metric}"
            found.append(of_interval(name, estimate, low, high, better_of(metric)))
    return found


def render(report: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = ["| trees on | AUC | GAUC | logloss |", "|---|--:|--:|--:|"]
    for row in report["rows"]:
        cells = [f"{row[metric]:.4f}" for metric in METRICS]
        lines.append(f"| {row['inputs']} | {' | '.join(cells)} |")
    lines += ["", "| paired difference | AUC | GAUC | logloss |", "|---|--:|--:|--:|"]
    for entry in report["differences"]:
        cells = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(*entry[metric]) for metric in METRICS]
        lines.append(f"| {entry['pair']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
