r"""Turn an interaction log into a store of user histories.

Examples:
  python -m pipelines.ingest data=ml_100k
  python -m pipelines.ingest data=log data.path='events/*.parquet' \
      data.columns.user=uid data.columns.item=sku data.columns.time=ts
  python -m pipelines.ingest data=log data.path=plays.csv data.columns.order=position

CSV, TSV, Parquet and NDJSON, one file or a glob. The same inputs and settings again are a cache
hit. Rows that cannot be used go to a quarantine file; more than data.max_bad_share of them stop the
ingest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.entry import main
from pipelines.paths import cache_dir
from pipelines.result import check_result_path, write_result
from pipelines.schemas import DataConfig, IngestConfig

if TYPE_CHECKING:
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
    return ingest(
        path, columns, cleaning, cache_dir(), verify=data.verify, name=data.name, accept=accept
    )


def run(config: IngestConfig) -> None:
    """Make the store, print its report and write the result."""
    from recsys.histories.ingest_report import read_report, render_report

    started = time.perf_counter()
    check_result_path(config.result)
    folder = make_store(config.data)
    report = read_report(folder)
    print(render_report(report))
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


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main("ingest", IngestConfig, run, __doc__ or "")
