"""What people call the items: titles from the table of items, else the ids themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.checking import ConfigError, nearest
from pipelines.ingest import table_beside
from pipelines.paths import cache_dir
from pipelines.schemas import DataConfig

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from recsys.histories.store import HistoryStore

USUAL = ("title", "name")


@dataclass(frozen=True)
class Titles:
    """Titles of all items.

    Attributes:
        by_item: text [V]; the id where the table has no title; index 0 is the padding.
        source: where they come from, in words.
    """

    by_item: pl.Series
    source: str

    def of(self, items: np.ndarray) -> list[str]:
        """The titles of some items."""
        found: list[str] = self.by_item.gather(items).to_list()
        return found


def item_titles(
    data: DataConfig,
    store: HistoryStore,
    *,
    table: str | None = None,
    key: str | None = None,
    column: str | None = None,
) -> Titles:
    """Titles from the given table, or from the one of the data, or from the store's attributes.

    Args:
        data: of the store; its `items`, or the table beside a public set, is looked at.
        store: whose items they are.
        table: a table with a row an item, in place of those of the data.
        key: its column with the item ids; None: named as in the log.
        column: with the titles; None: "title" or "name".

    Raises:
        ValueError: what was asked for by name is not there, or the table cannot be read.
    """
    place, setting = table or data.items, "titles" if table else "data.items"
    ids = key or (data.items_key if table is None else None) or data.columns.item
    if place is None and data.source is not None:
        place = table_beside(data.path or _canonical(data.source), "items")
    if place is None:
        if key is not None:
            raise ConfigError(f"titles_key={key!r} says nothing without a table in titles=")
        return _from_store(store, column)
    return _from_table(place, setting, ids, column, store, asked=table is not None)


def _canonical(source: str) -> str:
    return str(cache_dir() / "downloads" / source / f"{source}.parquet")


def _from_store(store: HistoryStore, column: str | None) -> Titles:
    """From the columns of items that features read."""
    there = [key.removeprefix("item.") for key in store.attributes if key.startswith("item.")]
    chosen = _chosen(there, column, "the columns of items that the store keeps")
    if chosen is None:
        return _ids_alone(store)
    attribute = store.attributes[f"item.{chosen}"]
    if attribute.values is None or attribute.codes is None or attribute.offsets is not None:
        if column is None:
            return _ids_alone(store)
        raise ConfigError(f"title={chosen}: the column holds {attribute.form}, not one text each")
    import polars as pl

    texts = pl.concat([pl.Series("", [None], dtype=pl.String), attribute.values.alias("")])
    return _titles(store, texts.gather(attribute.codes), f"column '{chosen}' of the data's items")


def _from_table(
    path: str, setting: str, key: str, column: str | None, store: HistoryStore, *, asked: bool
) -> Titles:
    """From a table. One that nobody named for its titles may lack them."""
    import numpy as np
    import polars as pl

    from recsys.logs.errors import LogError
    from recsys.logs.readers import read_table, table_columns

    try:
        chosen = _chosen(table_columns(path, setting), column, path)
        if chosen is None and asked:
            raise ConfigError(
                f"titles={path}: it has no column 'title' or 'name': add title=COLUMN"
            )
        if chosen is None:
            return _ids_alone(store)
        rows = read_table(path, {key: f"{setting}_key", chosen: "title"}, setting)
    except LogError:
        if asked or column is not None:
            raise
        return _ids_alone(store)
    ids = rows[key]
    if ids.dtype.is_float():  # what pandas makes of whole numbers with gaps
        ids = ids.cast(pl.Int64, strict=False)
    found = store.item_vocabulary.indices(ids)
    known = np.flatnonzero(found >= 0)[::-1]  # of two rows about one item the first counts
    if len(known) == 0 and asked:
        raise ConfigError(
            f"titles={path}: none of its {len(ids):,} ids in column '{key}', such as "
            f"{ids.head(1).to_list()}, stands in the log, which has "
            f"{store.item_vocabulary.raw_ids.head(1).to_list()}. If another column holds the ids: "
            "titles_key=COLUMN"
        )
    row_of = np.full(store.catalogue_size, len(rows), dtype=np.int64)
    row_of[found[known]] = known
    texts = pl.concat([rows[chosen].cast(pl.String), pl.Series(chosen, [None], dtype=pl.String)])
    return _titles(store, texts.gather(row_of), f"column '{chosen}' of {path}")


def _chosen(there: list[str], column: str | None, where: str) -> str | None:
    """The column with the titles; None where none is known for that."""
    if column is None:
        return next((name for name in USUAL if name in there), None)
    if column not in there:
        columns = ", ".join(map(repr, there)) or "none"
        hint = nearest(column, there)
        raise ConfigError(f"title={column}: {where} has no such column, but {columns}.{hint}")
    return column


def _titles(store: HistoryStore, texts: pl.Series, source: str) -> Titles:
    """Titles where there is text, else ids."""
    import polars as pl

    ids = _ids_alone(store).by_item
    blank = texts.is_null() | (texts.str.strip_chars() == "")
    chosen = pl.DataFrame({"text": texts, "id": ids, "blank": blank})
    titles = chosen.select(pl.when(pl.col("blank")).then("id").otherwise("text")).to_series()
    return Titles(titles, source)


def _ids_alone(store: HistoryStore) -> Titles:
    import polars as pl

    ids = store.item_vocabulary.raw_ids.cast(pl.String)
    padding = pl.Series(ids.name, [""], dtype=pl.String)
    return Titles(pl.concat([padding, ids]), "their ids; no table of items has a title or name")
