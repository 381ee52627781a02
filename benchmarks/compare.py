r"""Two results of one benchmark: which figures moved by more than their own noise.

    python -m benchmarks.compare OLD.json NEW.json
    python -m benchmarks.compare OLD.json NEW.json --fail      # exit code 1 if one got worse

Each figure has one value in a file for each round, repeat or seed (a ratio has one for each round:
the peer's seconds by ours). With s their standard deviation and n their number, s / √n is the error
of their mean; where a file gives a 95 % interval instead, its width by 3.92. The noise of a change
is Welch's: √(error_old² + error_new²), times the 97.5 % point of Student's t with the degrees of
freedom of both. Of figures that did not change, one in twenty is so called "moved". A figure taken
only once has no noise to compare with, and is never called moved.

Rounds of one file share the machine of that hour. Two files' seconds differ by more than their
rounds say; ratios, taken in turns, are what to trust. Refuses files of different benchmarks; names
what is in one only, and every difference in hardware, versions and settings.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.figures import Figure

# What was chosen or given, at any depth of a report ("seeds" on top). All else was measured.
GIVEN = {
    "hardware",
    "versions",
    "python",
    "commit",
    "name",
    "recipe",
    "settings",
    "seeds",
    "rounds",
    "protocol",
    "resamples",
    "threads",
    "users",
    "items",
    "width",
    "max_length",
}


@dataclass(frozen=True)
class Change:
    """A figure in both files.

    Attributes:
        old: in the first file.
        new: in the second.
        noise: how far chance alone moves the difference, 19 times of 20; NaN where nobody knows.
    """

    old: Figure
    new: Figure
    noise: float

    @property
    def moved(self) -> bool:
        """Whether it moved by more than its noise."""
        return abs(self.new.value - self.old.value) > self.noise

    @property
    def verdict(self) -> str:
        """Better, worse, as before, or not known."""
        if math.isnan(self.noise):
            return "taken once"
        if not self.moved:
            return "within noise"
        rose = self.new.value > self.old.value
        return "better" if rose == (self.new.better == "higher") else "worse"


def main() -> None:
    """Reads, compares, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--fail", action="store_true", help="exit code 1 if a figure got worse")
    arguments = parser.parse_args()
    try:
        old, new = read(arguments.old), read(arguments.new)
        changes, single = compare(figures_of(old), figures_of(new))
        check_common(old, new, changes)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    for line in differences(old, new):
        print(f"Warning: {line}")
    print(render(changes))
    for line in single:
        print(line)
    if arguments.fail and any(change.verdict == "worse" for change in changes):
        sys.exit(1)


def read(file: Path) -> dict[str, Any]:
    """A report of a benchmark.

    Args:
        file: that `benchmarks.record.write` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        report = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(report, dict) or not isinstance(report.get("benchmark"), str):
        raise ValueError(f"{file} is no result of a benchmark: it does not say which")
    return report


def figures_of(report: dict[str, Any]) -> list[Figure]:
    """What the report's benchmark reads from it.

    Args:
        report: begins with `record.circumstances`.

    Raises:
        ValueError: there is no such benchmark, or it has no figures.
    """
    name = report["benchmark"]
    if not name.isidentifier() or not (Path(__file__).parent / f"{name}.py").is_file():
        raise ValueError(f"there is no benchmark '{name}' in benchmarks/")
    module = importlib.import_module(f"benchmarks.{name}")
    if not hasattr(module, "figures"):
        raise ValueError(f"benchmarks/{name}.py has no figures(report)")
    found: list[Figure] = module.figures(report)
    return found


def compare(old: list[Figure], new: list[Figure]) -> tuple[list[Change], list[str]]:
    """What became of each figure, and lines about those that are in one file only.

    Args:
        old: of the first file.
        new: of the second.
    """
    before, after = ({figure.name: figure for figure in side} for side in (old, new))
    changes = [
        Change(before[name], figure, noise(before[name], figure))
        for name, figure in after.items()
        if name in before
    ]
    single = [f"only in the old file: {name}" for name in before if name not in after]
    single += [f"only in the new file: {name}" for name in after if name not in before]
    return changes, single


def noise(old: Figure, new: Figure) -> float:
    """How far chance alone moves the difference of two figures, 19 times of 20 (Welch).

    Args:
        old: in the first file.
        new: in the second.

    Returns:
        In the figure's unit; NaN where one of them was taken once.
    """
    a, b = old.error**2, new.error**2
    if math.isnan(a + b):
        return math.nan
    by_part = a**2 / old.freedom + b**2 / new.freedom  # 0 where both come from intervals
    freedom = (a + b) ** 2 / by_part if by_part else math.inf
    return float(student.ppf(0.975, freedom)) * math.sqrt(a + b)


def check_common(old: dict[str, Any], new: dict[str, Any], changes: list[Change]) -> None:
    """Refuses two reports that have nothing in common.

    Args:
        old: the first report.
        new: the second.
        changes: of the figures in both.

    Raises:
        ValueError: different benchmarks, or no figure in both.
    """
    if old["benchmark"] != new["benchmark"]:
        raise ValueError(
            f"these are results of different benchmarks: {old['benchmark']} and {new['benchmark']}"
        )
    if not changes:
        raise ValueError("no figure is in both files")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for each piece of hardware, version or setting that is not the same.

    Args:
        old: the first report.
        new: the second.
    """
    before, after = given(old), given(new)
    lines = []
    for key in dict.fromkeys([*before, *after]):
        a, b = before.get(key, "not given"), after.get(key, "not given")
        if a != b:
            lines.append(f"{key} differs: {a} and {b}")
    return lines


def given(report: Any, path: str = "", inside: bool = False) -> dict[str, Any]:
    """The leaves of a report that were chosen or given, by their dotted keys.

    Args:
        report: a report or a part of it.
        path: of the part.
        inside: whether the part is below one of `GIVEN`.
    """
    if isinstance(report, dict):
        entries = [
            (key, value, inside or (key in GIVEN and not (path and key == "seeds")))
            for key, value in report.items()
        ]
    elif isinstance(report, list) and any(isinstance(entry, dict) for entry in report):
        entries = [
            (str(entry.get("name", i)) if isinstance(entry, dict) else str(i), entry, inside)
            for i, entry in enumerate(report)
        ]
    else:
        return {path: report} if inside else {}
    found: dict[str, Any] = {}
    for key, value, below in entries:
        found |= given(value, f"{path}.{key}" if path else key, below)
    return found


def render(changes: list[Change]) -> str:
    """What moved on top, as Markdown."""
    lines = ["| figure | old | new | change | noise | |", "|---|--:|--:|--:|--:|---|"]
    for change in sorted(changes, key=lambda change: not change.moved):
        old, new = change.old.value, change.new.value
        lines.append(
            f"| {change.new.name} | {old:.4g} | {new:.4g} | {part(new - old, old):s} "
            f"| {'' if math.isnan(change.noise) else '±' + part(change.noise, old).lstrip('+')} "
            f"| {change.verdict} |"
        )
    moved = sum(change.moved for change in changes)
    return "\n".join(lines) + f"\n\n{moved} of {len(changes)} moved by more than their noise\n"


def part(difference: float, whole: float) -> str:
    """In per cent of a whole, or as it stands where that is nothing."""
    return f"{100 * difference / abs(whole):+.1f} %" if whole else f"{difference:+.4g}"


if __name__ == "__main__":
    main()
