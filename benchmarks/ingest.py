r"""Ingest at scale: a log of millions of rows, ours against pandas and RecTools.

    python -m benchmarks.ingest --peer VENV/bin/python                     # 20 million rows
    python -m benchmarks.ingest --peer VENV/bin/python --rows 2000000 --formats csv --rounds 3
    python -m benchmarks.ingest --rows 100000000                           # ours alone

The log: string ids of users (14 letters) and items (10), a rating, a time in seconds; rows come in
no order, and both users and items are of unequal popularity. It is made once, in `--folder`, and
found there again (20 million rows: 0.9 GB as CSV).

- ours: the ingest itself, as `python -m pipelines.ingest` runs it: digest of the source, checks,
  5-core, numbers for ids in ascending order, stable sort into histories, report, store on disk;
- pandas: read, iterated 5-core, factorize, stable sort, arrays on disk;
- RecTools: read with pandas, the same 5-core, then `Dataset.construct`: no sort, nothing on disk;
- construct alone: the same without the core, which leaves every row in: less work, shown for what
  the library itself takes.

Each runs in a process of its own, one after the other, the order reversed every other round.
Seconds are of the work without the imports; memory is the peak of the whole process. pandas and
RecTools live in VENV (`peers/requirements-rectools.txt`). Prints the ratios against the better of
pandas and RecTools, and writes everything to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write

CORE = 5
FORMATS = ("csv", "parquet")
PEERS = {
    "pandas": "pandas_ingest.py",
    "RecTools": "rectools_ingest.py",
    "construct alone": "rectools_ingest.py",
}
_CHUNK = 1_000_000
_USER_LETTERS, _ITEM_LETTERS = 13, 9
_FIRST_TIME, _LAST_TIME = 1_500_000_000, 1_560_000_000  # July 2017 to June 2019


def main() -> None:
    """Runs, prints, writes; or is one of the processes that do so."""
    parser = command_line(__doc__)
    parser.add_argument("--peer", type=Path, help="Python with pandas and RecTools; none: ours")
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, help="default: a hundredth of the rows")
    parser.add_argument("--items", type=int, help="default: half as many")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for logs, which stay, and what is written")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    if arguments.ours:
        print(json.dumps(ours(*map(Path, arguments.ours))))
        return
    users = arguments.users or arguments.rows // 100
    items = arguments.items or users // 2
    if arguments.make:
        make_log(Path(arguments.make), arguments.rows, users, items)
        return
    if arguments.peer is not None and not arguments.peer.is_file():
        sys.exit("--peer: Python of an environment as in peers/requirements-rectools.txt")
    if min(items, users) < 1 or arguments.rounds < 1:
        sys.exit("--rows, --users, --items, --rounds: whole numbers from 1 (100 rows at least)")
    folder = arguments.folder or Path(tempfile.gettempdir()) / "recsys_ingest_benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    results = [
        compare(form, log_file(folder, arguments, users, items, form), arguments, folder)
        for form in arguments.formats
    ]
    report = {
        **circumstances("ingest"),
        "rows": arguments.rows,
        "users": users,
        "items": items,
        "core": CORE,
        "rounds": arguments.rounds,
        "results": results,
    }
    print(render(report), flush=True)
    write(report, "ingest")


def log_file(
    folder: Path, arguments: argparse.Namespace, users: int, items: int, form: str
) -> Path:
    """The log in one format; made, by a process of its own, if it is not there."""
    path = folder / f"log_{arguments.rows}_{users}_{items}.{form}"
    if not path.exists():
        print(f"making {path}", flush=True)
        sizes = ["--rows", str(arguments.rows), "--users", str(users), "--items", str(items)]
        command = [sys.executable, "-m", "benchmarks.ingest", "--make", str(path), *sizes]
        subprocess.run(command, check=True)
    return path


def make_log(path: Path, rows: int, users: int, items: int) -> None:
    """Write a log as CSV or Parquet, a million rows at a time; the same numbers, the same log.

    Args:
        path: of the file; its suffix says the format.
        rows: events.
        users: about so many different ids.
        items: about so many.
    """
    import numpy as np
    import polars as pl

    draw = np.random.Generator(np.random.PCG64(20))
    raw_users = _raw_ids(draw, "A", _USER_LETTERS, users)
    raw_items = _raw_ids(draw, "B", _ITEM_LETTERS, items)
    by_user = np.cumsum(draw.lognormal(0, 1.5, users))
    by_item = np.cumsum(1 / (np.arange(items) + 10.0))
    aside = path.with_name(f".{path.name}")

    def chunks() -> Any:
        for begin in range(0, rows, _CHUNK):
            size = min(_CHUNK, rows - begin)
            user = np.searchsorted(by_user, draw.random(size) * by_user[-1], side="right")
            item = np.searchsorted(by_item, draw.random(size) * by_item[-1], side="right")
            yield pl.DataFrame(
                {
                    "user_id": raw_users.gather(user),
                    "item_id": raw_items.gather(item),
                    "rating": draw.integers(1, 11, size) / 2,
                    "timestamp": draw.integers(_FIRST_TIME, _LAST_TIME, size),
                }
            )

    if path.suffix == ".parquet":
        pq = importlib.import_module("pyarrow.parquet")  # it has no types

        writer = None
        for chunk in chunks():
            table = chunk.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or pq.ParquetWriter(aside, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    else:
        with aside.open("wb") as file:
            for number, chunk in enumerate(chunks()):
                chunk.write_csv(file, include_header=number == 0)
    aside.rename(path)


def _raw_ids(draw: Any, first: str, letters: int, count: int) -> Any:
    """Ids: a letter, then random ones, so that their order says nothing.

    Args:
        draw: random generator.
        first: the first letter.
        letters: how many follow.
        count: how many ids.

    Returns:
        A series of text.
    """
    import numpy as np
    import polars as pl

    alphabet = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype=np.uint8)
    text = np.empty((count, 1 + letters), dtype=np.uint8)
    text[:, 0] = ord(first)
    text[:, 1:] = alphabet[draw.integers(0, len(alphabet), (count, letters))]
    return pl.Series(text.reshape(-1).view(f"S{1 + letters}").astype(str))


def compare(form: str, log: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds on one file."""
    names = ["ours", *(PEERS if arguments.peer else [])]
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names[:: 1 if number % 2 == 0 else -1]:
            _read_once(log)
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                if name == "ours":
                    command = [sys.executable, "-m", "benchmarks.ingest", "--ours", str(log), aside]
                else:
                    peer = Path(__file__).parent / "peers" / PEERS[name]
                    target = "construct" if name == "construct alone" else aside
                    command = [str(arguments.peer), str(peer), str(log), target]
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result = json.loads(found.stdout.splitlines()[-1])
            measured[name].append(result)
            print(
                f"{form}, round {number + 1}/{arguments.rounds}  {name}: "
                f"{result['seconds']:.1f} s, {result['peak_memory_gb']:.2f} GB",
                flush=True,
            )
    if arguments.peer:
        counts = {name: measured[name][0]["counts"] for name in ("ours", "pandas", "RecTools")}
        if any(found != counts["ours"] for found in counts.values()):
            sys.exit(f"what is left differs: {counts}")
    return {"format": form, "bytes": log.stat().st_size, "measured": measured}


def _read_once(log: Path) -> None:
    """So that everybody finds it in the system's memory."""
    with log.open("rb") as file:
        while file.read(1 << 24):
            pass


def ours(log: Path, folder: Path) -> dict[str, Any]:
    """The project's ingest of one file; seconds, peak memory and what came of it."""
    import resource

    from recsys.histories.ingest import ingest, read_report
    from recsys.logs.cleaning import Cleaning
    from recsys.logs.schema import Columns
    from recsys.training.memory import keep_freed_memory

    columns = Columns("user_id", "item_id", "timestamp", rating="rating")
    keep_freed_memory()  # as the command does
    begun = time.perf_counter()
    store = ingest(str(log), columns, Cleaning(user_core=CORE, item_core=CORE), folder)
    seconds = time.perf_counter() - begun
    report = read_report(store)
    return {
        "seconds": seconds,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "counts": {
            "events": report["rows_out"],
            "users": report["users"],
            "items": report["items"],
        },
    }


def render(report: dict[str, Any]) -> str:
    """A row a format: ratio first, against the better of the others."""
    hardware = report["hardware"]
    lines = [
        f"Ingest of {report['rows']:,} rows, {report['core']}-core, {hardware['cores']} cores of "
        f"{hardware['cpu']}, median of {report['rounds']}",
        "",
    ]
    first = report["results"][0]["measured"]
    others = [name for name in first if name != "ours"]
    head = ["format", *(["ratio"] if others else []), "rows/s"]
    head += [f"{name} {what}" for name in first for what in ("time", "memory")]
    lines += [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for result in report["results"]:
        seconds = {n: median(m["seconds"] for m in r) for n, r in result["measured"].items()}
        memory = {n: max(m["peak_memory_gb"] for m in r) for n, r in result["measured"].items()}
        cells = [result["format"]]
        if others:
            better = min(seconds[name] for name in others if name != "construct alone")
            cells.append(f"{better / seconds['ours']:.1f}×")
        cells.append(f"{report['rows'] / seconds['ours']:,.0f}")
        for name in first:
            cells += [f"{seconds[name]:.1f} s", f"{memory[name]:.2f} GB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Ratios to the better of those that do the whole job, seconds and memory."""
    found = []
    for result in report["results"]:
        form, measured = result["format"], result["measured"]
        seconds = {name: [m["seconds"] for m in rounds] for name, rounds in measured.items()}
        others = [name for name in seconds if name not in ("ours", "construct alone")]
        if others:
            better = min(others, key=lambda name: median(seconds[name]))
            ratios = [
                theirs / own for theirs, own in zip(seconds[better], seconds["ours"], strict=True)
            ]
            found.append(of_rounds(f"{form}: ratio", ratios, "higher"))
        memory = [m["peak_memory_gb"] for m in measured["ours"]]
        found.append(of_rounds(f"{form}: ours, s", seconds["ours"], "lower"))
        found.append(of_rounds(f"{form}: ours, GB", memory, "lower"))
    return found


if __name__ == "__main__":
    main()
