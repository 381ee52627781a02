"""RecTools' `Dataset.construct` of a log read with pandas, for `python -m benchmarks.ingest`.

No core, no sort into histories, nothing on disk: RecTools does none of that here. It says on one
line, as JSON, what it measured. VENV of `requirements-rectools.txt` runs it; it knows nothing of
this project.
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


def main() -> None:
    """One log; the folder behind it is not used."""
    log = Path(sys.argv[1])
    begun = time.perf_counter()
    events = pd.read_parquet(log) if log.suffix == ".parquet" else pd.read_csv(log)
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
