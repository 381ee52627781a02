"""Every command's last line leads to MLflow's UI: read from the code, along all of its ways."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.pipelines.test_config import COMMANDS

# What no run, and so no page, comes of.
NO_RUN = {
    "train": {"say_plan(config, judge)"},
    "sync": {"{len(arrived)} delivered, {left} waiting, {len(closed)} closed"},
}


class LastLines:
    """What the functions of a module may have printed last when they end."""

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.functions = {d.name: d for d in tree.body if isinstance(d, ast.FunctionDef)}
        self.known: dict[str, set[str]] = {}

    def of(self, name: str) -> set[str]:
        """The texts of the last lines, as the code has them; "" where nothing is printed."""
        if name not in self.known:
            self.known[name] = {""}  # what calls itself prints nothing while it does
            ended: set[str] = set()
            self.known[name] = self.after(self.functions[name].body, {""}, ended) | ended
        return self.known[name]

    def after(self, body: list[ast.stmt], last: set[str], ended: set[str]) -> set[str]:
        for statement in body:
            match statement:
                case ast.FunctionDef() | ast.ClassDef():
                    continue
                case ast.Raise():
                    return set()
                case ast.Return(value=value):
                    ended |= self.printed(value, last)
                    return set()
                case ast.If(test=test, body=inner, orelse=other):
                    last = self.printed(test, last)
                    last = self.after(inner, last, ended) | self.after(other, last, ended)
                case ast.For(body=inner) | ast.While(body=inner):
                    last = last | self.after(inner, last, ended)
                case ast.With(body=inner):
                    last = self.after(inner, last, ended)
                case ast.Try(body=inner, handlers=handlers):
                    caught = [self.after(handler.body, last, ended) for handler in handlers]
                    last = self.after(inner, last, ended).union(*caught)
                case _:
                    last = self.printed(statement, last)
        return last

    def printed(self, node: ast.AST | None, last: set[str]) -> set[str]:
        calls = [] if node is None else [n for n in ast.walk(node) if isinstance(n, ast.Call)]
        for call in calls:
            name = ast.unparse(call.func)
            if name in ("say", "print") and not any(k.arg == "file" for k in call.keywords):
                return {ast.unparse(call.args[0]).removeprefix("f").strip("'\"")}
            if name == "say_plan":
                return {ast.unparse(call)}
            if name in self.functions and (inside := self.of(name)) != {""}:
                return (inside - {""}) | (last if "" in inside else set())
        return last


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"ui"}))
def test_the_last_line_leads_to_the_ui(command: str) -> None:
    module = importlib.import_module(f"pipelines.{command}")
    lines = LastLines(Path(str(module.__file__)).read_text(encoding="utf-8")).of("run")
    ways = ("how_to_open(", "as_typed('train', ")  # an ingest leaves no run: its training does
    stray = {line for line in lines if not line.startswith(ways)}
    assert stray == NO_RUN.get(command, set())
    assert lines > stray
