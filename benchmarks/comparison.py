r"""SASRec held against every baseline, question by question, and what the split audit says.

    python -m benchmarks.comparison                        # publishers' data; trains seed 1 of each
    python -m benchmarks.comparison --data DIR             # the canonical tables in DIR
    python -m benchmarks.comparison --only ml1m --runs ml1m=RUN_ID   # a run there is already
    python -m benchmarks.comparison --show benchmarks/results/*_comparison.json

ML-1M and Amazon Beauty by leave-one-out, Ta-Feng under a global cut in time. What is printed is
what `python -m pipelines.compare runs=[RUN_ID]` finds: paired differences, intervals by drawing
users, p-values by Holm. Writes everything, cohorts too, to `benchmarks/results/`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, of_interval
from benchmarks.quality import train
from benchmarks.record import circumstances, command_line, show_again, write

RECIPES = {
    "ml1m": ("sasrec_ml1m", "ml1m.parquet"),
    "beauty": ("sasrec_beauty", "amazon_beauty_s3rec.parquet"),
    "ta_feng": ("sasrec_ta_feng", "ta_feng.parquet"),
}


def main() -> None:
    """Runs, prints, writes."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, help="folder with the canonical tables")
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--runs", nargs="+", default=[], metavar="NAME=RUN_ID")
    arguments = parser.parse_args()
    if show_again(arguments, render):
        return
    runs = dict(named.split("=", 1) for named in arguments.runs)
    if wrong := set(runs) - set(RECIPES):
        sys.exit(f"--runs: there is no {', '.join(wrong)}; there are {', '.join(RECIPES)}")
    found = []
    for name in arguments.only:
        recipe, table = RECIPES[name]
        if name not in runs:
            settings = [f"experiment={recipe}"]
            if arguments.data:
                settings.append(f"data.path={(arguments.data / table).resolve()}")
            runs[name] = train(settings, 1)["run_id"]
        found.append({"recipe": recipe, **compared(runs[name])})
    report = {**circumstances("comparison"), "results": found}
    print(render(report), flush=True)
    write(report, "comparison")


def compared(run_id: str) -> dict[str, Any]:
    """What `compare` finds of a run, and its audit."""
    from pipelines.paths import tracking_uri
    from recsys.tracking.reading import load_run

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pipelines.compare", f"runs=[{run_id}]"]
        subprocess.run([*command, f"result={result}"], check=True, stdout=subprocess.DEVNULL)
        comparison = json.loads(result.read_text())["comparison"]
    own = json.loads(load_run(tracking_uri(), run_id).artifact("report.json").read_text())
    kept = ("in_words", "audit", "tie_orders", "sentinel", "suspicions")
    return {"comparison": comparison, **{name: own[name] for name in kept}}


def render(report: dict[str, Any]) -> str:
    """The tables as Markdown."""
    parts = []
    for found in report["results"]:
        comparison = found["comparison"]
        own = comparison["reference"]
        lines = [
            f"`{found['recipe']}` · test/{comparison['protocol']} · "
            f"{comparison['questions']:,} questions · seed 1",
            "",
            f"| model | {comparison['metric']} | {own['model']} ahead by | win / tie / loss "
            "| p (Holm) | verdict |",
            "|---|--:|--:|--:|--:|---|",
            f"| {own['model']} | {_interval(own)} | | | | |",
        ]
        for other in comparison["others"]:
            counts = (f"{other[name]:,}" for name in ("wins", "ties", "losses"))
            lines.append(
                f"| {other['other']} | {_interval(other['value'])} "
                f"| {_interval(other['difference'], '+')} | {' / '.join(counts)} "
                f"| {other['p_holm']:.3f} | {other['verdict']} |"
            )
        lines += ["", f"Split audit: {audit(found['audit'])}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def audit(findings: list[dict[str, Any]]) -> str:
    """Each finding that is there, with its share; the future in any case."""
    said = [
        f"{finding['in_words']} {finding['share']:.1%}"
        for finding in findings
        if finding["count"] or finding["name"] == "future"
    ]
    if not any(finding["name"] == "future" for finding in findings):
        said.insert(0, "no times, so nothing is known of the future")
    return "; ".join(said)


def _interval(found: dict[str, float], sign: str = "") -> str:
    return f"{found['estimate']:{sign}.4f} [{found['low']:{sign}.4f}, {found['high']:{sign}.4f}]"


def figures(report: dict[str, Any]) -> list[Figure]:
    """Each difference with its interval."""
    return [
        of_interval(
            f"{found['recipe']}: ahead of {other['other']}",
            *(other["difference"][end] for end in ("estimate", "low", "high")),
            better="higher",
        )
        for found in report["results"]
        for other in found["comparison"]["others"]
    ]


if __name__ == "__main__":
    main()
