"""Ours and a peer's, side by side: the command line, the rounds, the ratios and their table.

The sides of a result are called "ours [variant] PRECISION" and "PEER PRECISION". A side plays
rounds (`benchmarks.turns`), of which the first warms up and is not counted. What is compared is
speed: rows a second where a side counts its rows, else rounds a second.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import command_line
from benchmarks.turns import Player, take_turns

Side = dict[str, Any]
PEERS = Path(__file__).parent / "peers"


def peer_command_line(
    description: str | None, only: list[str], precisions: list[str]
) -> argparse.ArgumentParser:
    """The parser of a benchmark that runs a peer.

    Args:
        description: the docstring of the benchmark.
        only: what there is to compare.
        precisions: in which both sides play.
    """
    parser = command_line(description)
    parser.add_argument("--peer", type=Path, help="Python of the peer's environment")
    parser.add_argument("--data", type=Path, help="folder with the canonical tables")
    parser.add_argument("--only", nargs="+", choices=only, default=only)
    parser.add_argument("--precisions", nargs="+", choices=precisions, default=precisions)
    parser.add_argument("--rounds", type=int, default=4, help="of each side, 1 to warm up")
    return parser


def check_peer(arguments: argparse.Namespace, requirements: str) -> None:
    """Leaves the program where there is no peer, or nothing would be counted."""
    if arguments.peer is None or not arguments.peer.is_file():
        sys.exit(f"--peer: Python of an environment as in peers/{requirements}")
    if arguments.rounds < 2:
        sys.exit("--rounds: the first is not counted, so 2 at least")


def play_rounds(players: list[Player], rounds: int) -> list[Side]:
    """All rounds, in turns; what each side measured."""
    take_turns(players, rounds)
    return [{"name": player.name, "seconds": player.seconds, **player.end()} for player in players]


def pairs_of(result: dict[str, Any]) -> list[tuple[str, Side, Side]]:
    """What of ours stands beside the peer: its variant and precision, our side, the peer's.

    Each variant has the peer of its own precision; where there are several precisions, the fastest
    of ours beside the fastest of the peer's comes first.
    """
    own: dict[str, dict[str, Side]] = {}  # by variant and precision
    peers: dict[str, Side] = {}
    for side in result["players"]:
        who, *variant, precision = side["name"].split()
        if who == "ours":
            own.setdefault(" ".join(variant), {})[precision] = side
        else:
            peers[precision] = side
    found = []
    for variant, sides in own.items():
        named = f"{variant}, " * bool(variant)
        if len(sides) > 1:
            found.append(
                (f"{named}best", fastest(list(sides.values())), fastest([*peers.values()]))
            )
        found += [(f"{named}{p}", side, peers[p]) for p, side in sides.items()]
    return found


def fastest(sides: Iterable[Side]) -> Side:
    """By the median of its rounds."""
    return max(sides, key=lambda side: median(speeds(side)))


def speeds(side: Side) -> list[float]:
    """Rows a second of the counted rounds; rounds a second where rows are not counted."""
    rows = side["rows"] if isinstance(side.get("rows"), list) else [1] * len(side["seconds"])
    return [n / s for n, s in zip(rows, side["seconds"], strict=False)][1:]


def ratios_of(own: Side, peer: Side) -> list[float]:
    """Our speed by the peer's, in each counted round."""
    return [a / b for a, b in zip(speeds(own), speeds(peer), strict=True)]


def render(
    report: dict[str, Any], title: str, peer: str, label: Callable[[dict[str, Any]], str]
) -> str:
    """The table as Markdown: ratios of the medians first.

    Args:
        report: with `hardware`, `rounds` and `results`.
        title: what was compared.
        peer: what the peer is called.
        label: what a result is called.
    """
    hardware = report["hardware"]
    lines = [
        f"{title}, {hardware['cores']} cores of {hardware['cpu']}, median of "
        f"{report['rounds'] - 1} rounds",
        "",
        f"| | ratio | lowest–highest | ours | {peer} | memory, ours | {peer} |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for result in report["results"]:
        for name, own, other in pairs_of(result):
            ratios = ratios_of(own, other)
            ratio = median(speeds(own)) / median(speeds(other))
            lines.append(
                f"| {label(result)}, {name} | {ratio:.1f}× | {min(ratios):.1f}–{max(ratios):.1f} "
                f"| {said(own)} | {said(other)} "
                f"| {own['peak_memory_gb']:.1f} GB | {other['peak_memory_gb']:.1f} GB |"
            )
    return "\n".join(lines) + "\n"


def said(side: Side) -> str:
    """Median rows a second, or seconds of a round."""
    speed = median(speeds(side))
    return (
        f"{speed:,.0f} rows/s"
        if isinstance(side.get("rows"), list)
        else f"{1 / speed:,.{2 if speed > 0.1 else 1}f} s"
    )


def figures(report: dict[str, Any], peer: str) -> list[Figure]:
    """Ratio, both speeds and our peak memory, of each pair."""
    found = []
    for result in report["results"]:
        for name, own, other in pairs_of(result):
            name = f"{result['name']}, {name}"
            found.append(of_rounds(f"{name}: ratio", ratios_of(own, other), "higher"))
            if name.endswith("best"):
                continue  # its sides are among the others
            for who, side in (("ours", own), (peer, other)):
                if isinstance(side.get("rows"), list):
                    found.append(of_rounds(f"{name}: {who}, rows/s", speeds(side), "higher"))
                else:
                    found.append(of_rounds(f"{name}: {who}, s", side["seconds"][1:], "lower"))
            found.append(of_rounds(f"{name}: ours, GB", [own["peak_memory_gb"]], "lower"))
    return found
