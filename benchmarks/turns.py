"""Two programs that take turns on one machine, so that whatever slows it slows both.

A program that takes part prints `ready` when it could begin and then, for each line `go` that it
reads, does one round of its work and prints the seconds it took. At the end of its input it prints
what else it measured, as JSON on one line, and leaves.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Player:
    """A program that takes part, in a process of its own.

    Args:
        name: what it is called in the table.
        command: starts it.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        self._expect("ready")

    def play(self) -> float:
        """One round; its seconds."""
        self._say("go")
        seconds = float(self._expect("seconds"))
        self.seconds.append(seconds)
        return seconds

    def end(self) -> dict[str, Any]:
        """What the program measured besides; it is gone then."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        measured: dict[str, Any] = json.loads(self._expect("measured"))
        self.process.wait()
        return measured

    def _say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def _expect(self, word: str) -> str:
        """The rest of the next line that begins with a word; other lines are for the eye only."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(f"{word}:"):
                return line.partition(":")[2].strip()
            print(f"  {self.name}: {line}", end="", file=sys.stderr)
        sys.exit(f"{self.name} ended with code {self.process.wait()} before it said '{word}'")


def take_turns(players: list[Player], rounds: int, say: Callable[[str], None] = print) -> None:
    """Each plays each round, one after the other; the order is reversed every other round."""
    for number in range(rounds):
        for player in players[:: 1 if number % 2 == 0 else -1]:
            say(f"round {number + 1}/{rounds}  {player.name}: {player.play():.2f} s")


def wait_for_turn(first: bool) -> bool:
    """In the program that takes part: until it is its turn; False when the game is over."""
    if first:
        print("ready:", flush=True)
    return sys.stdin.readline().strip() == "go"


def report_seconds(seconds: float) -> None:
    """In the program that takes part: the round is over."""
    print(f"seconds: {seconds}", flush=True)


def report_end(**measured: Any) -> None:
    """In the program that takes part: the game is over."""
    measured["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"measured: {json.dumps(measured)}", flush=True)
