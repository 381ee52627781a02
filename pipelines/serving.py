"""What a training leaves for those who serve its model."""

from __future__ import annotations

from pathlib import Path

from pipelines.clicks import ClickJudge
from pipelines.judging import Judge
from pipelines.schemas import ClicksConfig, TrainConfig


def make_servable(folder: Path, config: TrainConfig, judge: Judge | ClickJudge) -> None:
    """Makes the folder of a saved model an MLflow model.

    The popularity list, for those without a history, counts the training events alone, of a ranker
    what was taken: nothing in the folder knows the test.

    Args:
        folder: of the model, and of a ranker's features.
        config: of the training.
        judge: of the training.
    """
    import numpy as np

    from recsys.serving.pyfunc import save_pyfunc
    from recsys.serving.recommender import event_counts

    store = judge.store
    if isinstance(judge, Judge):
        counts_V = event_counts(store, judge.split.training_ends)
        save_pyfunc(folder, store.item_vocabulary, counts_V, filter_seen=judge.filter_seen)
        return
    assert isinstance(config.questions, ClicksConfig)
    training = judge.split.training
    taken = training.candidates[training.labels == 1]
    save_pyfunc(
        folder,
        store.item_vocabulary,
        np.bincount(taken, minlength=store.catalogue_size),
        filter_seen=not config.data.repeats,
        ranker=(config.questions.history, store),
    )


def how_to_serve(run_id: str) -> str:
    """What the page of a run's model says, in Markdown."""
    return (
        "Takes a table with the column `history` (raw item ids, oldest first) and the parameters "
        "`k` and `filter_seen`; gives `items` and `scores`, best first, `model` (Popularity where "
        "it knows nothing of a history) and `unknown`, how many events were skipped.\n\n"
        f"Serve it: `mlflow models serve --env-manager local -m runs:/{run_id}/model`"
    )
