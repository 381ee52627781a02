r"""Turn an interaction log into a store of user histories.

Examples:
  python -m pipelines.ingest data=ml_100k
  python -m pipelines.ingest data=log data.path='events/*.parquet' \
      data.columns.user=uid data.columns.item=sku data.columns.time=ts
  python -m pipelines.ingest data=log data.path=sales.csv data.items=products.csv \
      data.features.price.kind=numeric data.features.price.of=item data.features.price.column=price
  python -m pipelines.ingest data=log data.path=plays.csv data.columns.order=position

CSV, TSV, Parquet and NDJSON, one file or a glob. The same inputs and settings again are a cache
hit. Rows that cannot be used go to a quarantine file; more than data.max_bad_share of them stop the
ingest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.entry import main
from pipelines.paths import cache_dir
from pipelines.result import check_result_path, write_result
from pipelines.schemas import DataConfig, HourOfWeekConfig, IngestConfig, RecencyConfig

if TYPE_CHECKING:
    from recsys.histories.features import Feature
    from recsys.histories.ingest import Extras
    from recsys.histories.store import HistoryStore


def make_store(data: DataConfig, accept: Callable[[HistoryStore], object] | None = None) -> Path:
    """The store of a log: fetched if it is a public data set, ingested if it is not cached.

    Args:
        data: the log and how it is cleaned.
        accept: raises if the store is of no use to the command; then none is left behind.

    Returns:
        The folder of the store.

    Raises:
        LogError: the log cannot be used; see `recsys.histories.ingest.ingest`.
    """
    from recsys.histories.features import check_features
    from recsys.histories.ingest import ingest
    from recsys.logs.cleaning import Cleaning
    from recsys.logs.errors import LogError
    from recsys.logs.schema import Columns

    # Everything about the settings is refused before anything is fetched.
    columns = Columns(
        user=data.columns.user,
        item=data.columns.item,
        time=data.columns.time,
        order=data.columns.order,
        rating=data.columns.rating,
        label=data.columns.label,
    )
    cleaning = Cleaning(
        deduplicate=data.deduplicate,
        user_core=data.user_core,
        item_core=data.item_core,
        minimum_rating=data.minimum_rating,
        positive_only=data.positive_only,
        drop_consecutive_repeats=data.drop_consecutive_repeats,
        time_from=data.time_from,
        time_until=data.time_until,
        max_bad_share=data.max_bad_share,
        time_unit=data.time_unit,
    )
    path = data.path
    if path is None:
        if data.source is None:
            raise LogError("data.path is required: name the log's file, or a glob of files.")
        from recsys.logs.sources import fetch

        path = str(fetch(data.source, cache_dir(), say=_say))
    extras = _extras(data, path)

    def accept_both(store: HistoryStore) -> None:
        check_features(store, features_of(data, store))
        if accept is not None:
            accept(store)

    return ingest(
        path,
        columns,
        cleaning,
        cache_dir(),
        verify=data.verify,
        name=data.name,
        accept=accept_both,
        extras=extras,
        label_from_rating=data.label_from_rating,
    )


def features_of(data: DataConfig, store: HistoryStore) -> list[Feature]:
    """The features that are configured, less those that `make_store` said it leaves out."""
    from recsys.histories.features import KINDS

    features = []
    for name, config in data.features.items():
        settings = asdict(config)
        feature = KINDS[settings.pop("kind")](name=name, **settings)
        key = f"{feature.of}.{getattr(feature, 'column', '')}"
        if not (_can_be_left_out(data, feature.of) and key not in store.attributes):
            features.append(feature)
    return features


def _can_be_left_out(data: DataConfig, of: str) -> bool:
    """Whether features of users or items go where a local copy of a public set has no table."""
    named = {"user": data.users, "item": data.items}
    return data.source is not None and data.path is not None and named.get(of, "") is None


def _extras(data: DataConfig, path: str) -> Extras:
    """The raw columns that the features need, where they stand, and the impression log."""
    from recsys.histories.attributes import SideTable
    from recsys.histories.impressions import ImpressionColumns, ImpressionLog
    from recsys.histories.ingest import Extras
    from recsys.logs.errors import LogError

    columns: dict[str, dict[str, str]] = {"user": {}, "item": {}, "event": {}, "context": {}}
    names: dict[str, list[str]] = {"user": [], "item": []}
    for name, feature in data.features.items():
        if not isinstance(feature, RecencyConfig | HourOfWeekConfig):
            told = {data.columns.label, data.columns.rating} - {None}
            if data.impressions is not None:
                told = {data.impressions.columns.label}
            if feature.of == "context" and feature.column in told:
                raise LogError(
                    f"data.features.{name}: '{feature.column}' is the answer, which nobody knows "
                    "when the question is asked; of=event gives it to past events"
                )
            columns[feature.of][feature.column] = f"data.features.{name}.column"
            names.setdefault(feature.of, []).append(name)
    tables: dict[str, SideTable] = {}
    for of, named, key, id_column in (
        ("user", data.users, data.users_key, data.columns.user),
        ("item", data.items, data.items_key, data.columns.item),
    ):
        setting = f"data.{of}s"
        table = named
        if table is None and data.source is not None and columns[of]:
            table = table_beside(path, f"{of}s")
        if table is not None:
            tables[of] = SideTable(table, key or id_column, columns.pop(of), setting)
        elif key is not None:
            raise LogError(f"{setting}_key={key!r} says nothing without a table in {setting}.")
        elif columns[of] and _can_be_left_out(data, of):
            _say(
                f"{data.name}: left out {', '.join(names[of])} (features of {of}s), since there is "
                f"no table of {of}s beside {path}: name one in {setting}"
            )
            del columns[of]
    impressions = None
    if data.impressions is not None:
        shown = ImpressionColumns(**asdict(data.impressions.columns))
        impressions = ImpressionLog(data.impressions.path, shown, columns.pop("context"))
    else:
        columns["event"] |= columns.pop("context")
    return Extras(tables.get("user"), tables.get("item"), columns, impressions)


def table_beside(path: str, what: str) -> str | None:
    """The table of users or items that stands beside a canonical one, if there is any."""
    place = Path(path)
    suffix = "".join(place.suffixes[-2:]) if place.suffix == ".gz" else place.suffix
    table = place.with_name(f"{place.name.removesuffix(suffix)}_{what}{suffix}")
    return str(table) if table.is_file() else None


def run(config: IngestConfig) -> None:
    """Make the store, print its report and write the result."""
    from recsys.histories.ingest_report import read_report, render_report
    from recsys.histories.store import open_store
    from recsys.training.memory import keep_freed_memory

    started = time.perf_counter()
    check_result_path(config.result)
    keep_freed_memory()
    folder = make_store(config.data)
    report = read_report(folder)
    print(render_report(report))
    say_audit(config, open_store(folder))
    print(f"Store: {folder}")
    numbers: dict[str, Any] = {
        name: value
        for name, value in report.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    write_result(
        config.result,
        run_id=None,
        seconds=time.perf_counter() - started,
        rows=[{"model": report["name"], "metrics": numbers}],
        store=str(folder),
        fingerprint=report["fingerprint"],
    )


def say_audit(config: IngestConfig, store: HistoryStore) -> None:
    """The audit of the split that is configured, if the log gives one.

    Raises:
        AuditError: beyond a threshold.
        SplitError: thresholds are set, and the split cannot be made.
    """
    from pipelines.examining import audited
    from pipelines.judging import make_split
    from recsys.histories.questions import SplitError

    try:
        split = make_split(config.split, store)
    except SplitError as error:
        if any(limit is not None for limit in asdict(config.audit).values()):
            raise
        print(f"split audit: split={config.split.name} cannot be made of this log: {error}")
        return
    audited(store, split, config.audit)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main("ingest", IngestConfig, run, __doc__ or "")
