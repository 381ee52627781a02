"""A trained model as an MLflow model: top-K lists for tables of histories, wherever MLflow serves.

    mlflow models serve --env-manager local -m runs:/RUN_ID/model
    curl localhost:5000/invocations -H 'Content-Type: application/json' -d '{
        "dataframe_records": [{"history": ["sku-7", "sku-3"]}, {"history": []}],
        "params": {"k": 5}}'

    mlflow.pyfunc.load_model("runs:/RUN_ID/model").predict(table, params={"k": 5})

Each row of the table is a history of raw item ids, oldest first, and gets one row back: `items` and
their `scores`, best first, `model`, which says Popularity where the history holds nothing that the
model knows, and `unknown`, how many of its events were skipped because the model does not know
their items.

A ranker is asked about every item for each history, all events of which it reads. A request says
nothing but histories: features of people, of their events and of the question count as missing, and
the people as unknown; of items everything is known. So answers `pipelines.recommend` to a log of
other people that has no other columns.

`save_pyfunc` turns the folder of a saved model into an MLflow model in place: beside `model.json`
and `weights.safetensors` stand the item vocabulary with what the popularity list is made of, a
ranker's features and what they read of items, and this package's own code, with the package of a
model of one's own, so that neither store nor checkout is needed. Nothing is pickled: MLflow imports
this file from the model's code and calls `_load_pyfunc`.

MLflow is imported by functions, not by this file: whoever loads a model through MLflow has it.

Dimensions: N histories, K list length, V catalogue incl. padding (index 0).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

import recsys
from recsys.histories.clicks import ViewKind
from recsys.histories.features import FittedFeatures
from recsys.histories.store import HistoryStore, open_store, write_store
from recsys.histories.vocabulary import Vocabulary
from recsys.logs.files import write_bytes, write_text
from recsys.serving.rankers import RankerScorer, items_alone
from recsys.serving.recommender import POPULARITY, Recommender, check_vocabulary
from recsys.training.saved_model import ModelError, load_model, read_description

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

FORMAT, VERSION = "recsys-serving", 1
HISTORY = "history"
DEFAULT_K = 10
# What answering needs. The training stack is not among it.
PACKAGES = ("mlflow", "numpy", "pandas", "polars", "safetensors", "torch")
FEATURES = "features.json"
_SETTINGS, _ITEMS, _KNOWN_ITEMS = "serving.json", "items.parquet", "items"
_LAST = "MLmodel"  # makes the folder an MLflow model
_EXAMPLE_K = 3


class ListsModel:
    """What MLflow asks: a table of histories in, a table of lists out.

    Args:
        recommender: makes the lists.
        filter_seen: whether items of the history are left out unless a request says otherwise.
    """

    def __init__(self, recommender: Recommender, filter_seen: bool) -> None:
        self.recommender = recommender
        self.filter_seen = filter_seen

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A list for each history.

        Args:
            table: column `history`: raw item ids, oldest first.
            params: `k`, the length of the lists (they are shorter where the items run out), and
                `filter_seen`, whether what the history holds is left out.

        Returns:
            `items`, `scores`, `model` and `unknown`, one row a history, in the table's order.

        Raises:
            MlflowException: k below 1, or no column `history`; a server answers 400.
        """
        import pandas as pd

        asked = {"k": DEFAULT_K, "filter_seen": self.filter_seen, **(params or {})}
        if HISTORY not in table:
            raise _refusal(
                f"the table has no column '{HISTORY}' (raw item ids, oldest first); it has "
                + (", ".join(map(str, table.columns)) or "none")
            )
        if asked["k"] < 1:
            raise _refusal(f"k must be at least 1, not {asked['k']}")
        histories = [np.asarray(ids, dtype=object).tolist() for ids in table[HISTORY]]
        store, _ = self.recommender.store_of(histories)
        top = self.recommender.top_k(
            store,
            np.arange(len(histories)),
            store.lengths,
            k=int(asked["k"]),
            filter_seen=bool(asked["filter_seen"]),
        )
        given = np.array([len(ids) for ids in histories], dtype=np.int64)
        rows = pl.Series("user", range(len(histories)), dtype=pl.Int64)
        frame = self.recommender.frame(rows, top)
        found = np.count_nonzero(top.items_NK, axis=1)
        ends = np.cumsum(found)
        items, scores = frame["item"].to_list(), frame["score"].to_list()
        spans = list(zip((ends - found).tolist(), ends.tolist(), strict=True))
        return pd.DataFrame(
            {
                "items": [items[begin:end] for begin, end in spans],
                "scores": [scores[begin:end] for begin, end in spans],
                "model": np.where(top.by_popularity_N, POPULARITY, self.recommender.name),
                "unknown": given - store.lengths,
            },
            index=table.index,
        )


def _load_pyfunc(folder: str) -> ListsModel:
    """What MLflow calls.

    Raises:
        ModelError: the folder does not hold what `save_pyfunc` wrote, or the vocabulary of another
            model.
    """
    path = Path(folder)
    settings = _read_settings(path / _SETTINGS)
    history: ViewKind | None = settings["ranker_history"]
    trusted = settings["own_packages"]  # whose code MLflow runs from here already
    try:
        table = pl.read_parquet(path / _ITEMS)
        items, counts = Vocabulary(table["item"], 1), table["count"].to_numpy()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ModelError(f"{path / _ITEMS} is missing or damaged: copy the model again") from error
    popularity_V = np.concatenate([[0], counts])
    if history is None:
        recommender = Recommender.load(
            path,
            items,
            popularity_V=popularity_V,
            trusted_modules=trusted,
        )
    else:
        described = read_description(path)
        check_vocabulary(described, items)
        features = FittedFeatures.load(path / FEATURES)
        known = open_store(path / _KNOWN_ITEMS)
        scorer = RankerScorer(load_model(path, trusted)[0], features, history, known)
        recommender = Recommender(
            scorer,  # type: ignore[arg-type]  # its batches are its own
            items,
            name=described["name"],
            # Who reads no histories answers everybody.
            popularity_V=None if history == "none" else popularity_V,
            make_batch=scorer.make_batch,
        )
    return ListsModel(recommender, settings["filter_seen"])


def save_pyfunc(
    folder: Path,
    items: Vocabulary,
    popularity_V: np.ndarray,
    *,
    filter_seen: bool,
    ranker: tuple[ViewKind, HistoryStore] | None = None,
) -> None:
    """Makes the folder of a saved model an MLflow model; `MLmodel` is written last.

    Args:
        folder: that `recsys.training.saved_model.save_model` wrote.
        items: the model's item vocabulary.
        popularity_V: int64, how often each item stands in the training events: the list of those
            without a history.
        filter_seen: whether items of the history are left out unless a request says otherwise.
        ranker: of one, which history it reads and the store it was trained on; its features are
            in the folder already.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    (folder / _LAST).unlink(missing_ok=True)  # until all is there again
    table = items.raw_ids.rename("item").to_frame().with_columns(count=popularity_V[1:])
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    write_bytes(folder / _ITEMS, buffer.getvalue())
    if ranker is not None:
        write_store(
            folder / _KNOWN_ITEMS,
            items_alone(ranker[1], FittedFeatures.load(folder / FEATURES)),
            name="items",
            fingerprint="",
            settings={},
            sources=[],
            order="order",
            report={},
        )
    package = str(read_description(folder)["class"]).partition(".")[0]
    own_packages = [] if package == recsys.__name__ else [package]
    settings = {
        "format": FORMAT,
        "version": VERSION,
        "filter_seen": filter_seen,
        "ranker_history": None if ranker is None else ranker[0],
        "own_packages": own_packages,
    }
    write_text(folder / _SETTINGS, json.dumps(settings, indent=2) + "\n")
    example = pd.DataFrame({HISTORY: [items.raw_ids.head(3).to_list(), []]})
    model = Model()
    code = [package_of(recsys.__name__), *map(package_of, own_packages)]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        made = Path(aside) / "model"
        mlflow.pyfunc.save_model(
            made,
            loader_module=__name__,
            code_paths=[str(path) for path in code],
            mlflow_model=model,
            signature=signature_of(items, filter_seen),
            input_example=(example, {"k": _EXAMPLE_K}),
            pip_requirements=requirements(),
            metadata={"format": FORMAT, "version": VERSION},
        )
        # In place, so that the weights are not copied; what MLflow picks up elsewhere (files of uv
        # where the command runs) stays behind.
        shutil.rmtree(folder / "code", ignore_errors=True)
        (made / "code").replace(folder / "code")
        for file in (
            "input_example.json",
            "serving_input_example.json",
            "requirements.txt",
            "conda.yaml",
            "python_env.yaml",
        ):
            (made / file).replace(folder / file)
        model.model_size_bytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        model.save(made / _LAST)
        (made / _LAST).replace(folder / _LAST)


def package_of(name: str) -> Path:
    """The folder of an imported package, or the file of a module that stands alone."""
    module = importlib.import_module(name)
    if module.__file__ is None:  # a package without __init__.py
        return Path(next(iter(module.__path__)))
    file = Path(module.__file__)
    return file.parent if file.name == "__init__.py" else file


def signature_of(items: Vocabulary, filter_seen: bool) -> ModelSignature:
    """Columns and parameters, with their types; ids are text or whole numbers, as in the log."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    ids = Array(DataType.string if items.raw_ids.dtype == pl.String else DataType.long)
    return ModelSignature(
        inputs=Schema([ColSpec(ids, HISTORY)]),
        outputs=Schema(
            [
                ColSpec(ids, "items"),
                ColSpec(Array(DataType.float), "scores"),
                ColSpec(DataType.string, "model"),
                ColSpec(DataType.long, "unknown"),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("k", DataType.long, DEFAULT_K),
                ParamSpec("filter_seen", DataType.boolean, filter_seen),
            ]
        ),
    )


def requirements() -> list[str]:
    """The packages that answering needs, in the versions at hand."""
    # Without what a build adds of its own ("+cpu"): no index has that.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES]


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is missing or damaged: copy the model again") from error
    if settings.get("format") != FORMAT or settings.get("version") != VERSION:
        raise ModelError(
            f"{file} says {settings.get('format')} {settings.get('version')}, this release reads "
            f"{FORMAT} {VERSION}"
        )
    return settings


def _refusal(message: str) -> Exception:
    """An error that MLflow's server passes on: of other errors it says only that there was one."""
    from mlflow.exceptions import MlflowException

    return MlflowException.invalid_parameter_value(message)
