"""RecTools' `Dataset.construct` of a log read with pandas, for `python -m benchmarks.ingest`.

Before it the iterated 5-core, in pandas, as RecTools has none; with `construct` in place of a
folder not even that. No sort into histories and nothing on disk either way. It says on one line, as
JSON, what it measured. VENV of `requirements-rectools.txt` runs it; it knows nothing of this
project.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset

CORE = 5


def main() -> None:
    """One log, then a folder, in which nothing is written, or the word `construct`."""
    log, core = Path(sys.argv[1]), sys.argv[2] != "construct"
    begun = time.perf_counter()
    events = pd.read_parquet(log) if log.suffix == ".parquet" else pd.read_csv(log)
    while core:
        before = len(events)
        for name in ("user_id", "item_id"):
            events = events[events.groupby(name)[name].transform("size") >= CORE]
        core = len(events) < before
    events = events.rename(columns={"rating": Columns.Weight, "timestamp": Columns.Datetime})
    events[Columns.Datetime] = pd.to_datetime(events[Columns.Datetime], unit="s")
    dataset = Dataset.construct(events)
    measured = {
        "seconds": time.perf_counter() - begun,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "counts": {
            "events": len(dataset.interactions.df),
            "users": dataset.user_id_map.size,
            "items": dataset.item_id_map.size,
        },
        "versions": {name: version(name) for name in ("rectools", "pandas", "numpy", "pyarrow")},
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
