"""The plain way from a log to histories with pandas, for `python -m benchmarks.ingest`.

Read, iterated 5-core, factorize, stable sort by user and time, arrays on disk. It says on one line,
as JSON, what it measured. VENV of `requirements-rectools.txt` runs it; it knows nothing of this
project.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

CORE = 5


def main() -> None:
    """One ingest: the log, then the folder to write to."""
    log, folder = map(Path, sys.argv[1:])
    begun = time.perf_counter()
    events = pd.read_parquet(log) if log.suffix == ".parquet" else pd.read_csv(log)
    while True:
        before = len(events)
        for name in ("user_id", "item_id"):
            events = events[events.groupby(name)[name].transform("size") >= CORE]
        if len(events) == before:
            break
    user, users = pd.factorize(events["user_id"])
    item, items = pd.factorize(events["item_id"])
    events = events.assign(user_id=user.astype(np.int32), item_id=item.astype(np.int32) + 1)
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(events["user_id"]))])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "items.npy", events["item_id"].to_numpy())
    np.save(folder / "times.npy", events["timestamp"].to_numpy())
    np.save(folder / "ratings.npy", events["rating"].to_numpy(dtype=np.float32))
    pd.DataFrame({"user": users}).to_parquet(folder / "users.parquet")
    pd.DataFrame({"item": items}).to_parquet(folder / "items.parquet")
    measured = {
        "seconds": time.perf_counter() - begun,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "counts": {"events": len(events), "users": len(users), "items": len(items)},
        "versions": {name: version(name) for name in ("pandas", "numpy", "pyarrow")},
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
