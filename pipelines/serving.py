"""What a training leaves for those who serve its model."""

from __future__ import annotations

from pathlib import Path

from pipelines.clicks import ClickJudge
from pipelines.judging import Judge
from pipelines.schemas import TrainConfig


def make_servable(folder: Path, config: TrainConfig, judge: Judge | ClickJudge) -> None:
    """Makes the folder of a saved model an MLflow model.

    The popularity list, for those without a history, counts the training events alone: nothing in
    the folder knows the test.

    Args:
        folder: of the model.
        config: of the training.
        judge: of the training.
    """
    from recsys.serving.pyfunc import save_pyfunc
    from recsys.serving.recommender import event_counts

    assert isinstance(judge, Judge)
    store = judge.store
    popularity_V = event_counts(store, judge.split.training_ends)
    save_pyfunc(folder, store.item_vocabulary, popularity_V, filter_seen=judge.filter_seen)
