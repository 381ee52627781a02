"""`benchmarks.compare`: what moved by more than its noise, on small made results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from benchmarks.compare import compare, differences, figures_of, main, noise
from benchmarks.figures import Figure, of_interval, of_rounds
from benchmarks.record import RESULTS


def training(ours: list[float], peer: list[float], **more: Any) -> dict[str, Any]:
    """A result of `benchmarks.training`, its first rounds being those that warm up."""
    sides = {"ours 32": ours, "RecTools 32": peer}
    players = [
        {"name": name, "seconds": seconds, "peak_memory_gb": 1.0, "threads": 1}
        for name, seconds in sides.items()
    ]
    result = {"name": "ml1m", "width": 64, "max_length": 200, "players": players}
    head = {"benchmark": "training", "versions": {"torch": "2.15.0"}, "hardware": {"cores": 2}}
    return {**head, "rounds": len(ours), "results": [result], **more}


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs the command on two reports (or texts); what it left with, and what it said."""

    def run(old: Any, new: Any, *options: str) -> tuple[Any, str]:
        files = [tmp_path / "old.json", tmp_path / "new.json"]
        for file, report in zip(files, (old, new), strict=True):
            file.write_text(report if isinstance(report, str) else json.dumps(report))
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, files), *options])
        code: Any = None
        try:
            main()
        except SystemExit as left:
            code = left.code
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize("n_old, n_new", [(2, 2), (3, 9), (20, 4)])
def test_moved_is_what_welch_calls_different(n_old: int, n_new: int) -> None:
    draw = np.random.default_rng(n_old)
    verdicts = []
    for shift in np.linspace(0, 4, 40):
        old, new = draw.normal(10, 1, n_old), draw.normal(10 + shift, 2, n_new)
        a, b = of_rounds("x", old.tolist(), "higher"), of_rounds("x", new.tolist(), "higher")
        verdicts.append(abs(b.value - a.value) > noise(a, b))
        assert verdicts[-1] == (ttest_ind(old, new, equal_var=False).pvalue < 0.05)
    assert any(verdicts) or n_old == 2
    assert not all(verdicts)


def test_intervals_have_the_noise_of_their_widths() -> None:
    a = of_interval("x", 0.5, 0.4, 0.6, "higher")
    b = of_interval("x", 0.9, 0.9, 0.9, "higher")
    assert noise(a, b) == pytest.approx(0.1, rel=1e-6)
    assert noise(b, b) == 0


@pytest.mark.parametrize(
    "old, new, better, verdict",
    [
        ([10, 11, 12], [20, 21, 22], "higher", "better"),
        ([10, 11, 12], [20, 21, 22], "lower", "worse"),
        ([20, 21, 22], [10, 11, 12], "lower", "better"),
        ([10, 11, 12], [10.5, 11.5, 12.5], "higher", "within noise"),
        ([10], [20, 21, 22], "higher", "taken once"),
        ([10, 11, 12], [20], "higher", "taken once"),
        ([5, 5], [5, 5], "lower", "within noise"),
        ([5, 5], [6, 6], "lower", "worse"),
    ],
)
def test_verdicts(old: list[float], new: list[float], better: Any, verdict: str) -> None:
    (change,), single = compare([of_rounds("x", old, better)], [of_rounds("x", new, better)])
    assert (change.verdict, single) == (verdict, [])
    assert change.moved == (verdict in ("better", "worse"))


def test_what_is_in_one_only_is_named() -> None:
    names = {"old": ("a", "b"), "new": ("b", "c")}
    old, new = ([Figure(name, 1.0, 0.1, 3, "lower") for name in side] for side in names.values())
    changes, single = compare(old, new)
    assert [change.new.name for change in changes] == ["b"]
    assert single == ["only in the old file: a", "only in the new file: c"]


def test_ratios_leave_the_first_round_out() -> None:
    found = {f.name: f for f in figures_of(training([9, 1, 2, 4], [9, 10, 20, 40]))}
    assert found["ml1m, 32: ratio"].value == 10
    assert found["ml1m, 32: ratio"].error == 0
    assert found["ml1m, 32: ours, s"].value == pytest.approx(7 / 3)


def test_the_best_pair_is_that_of_the_fastest_sides() -> None:
    report = training([9, 2, 2], [9, 8, 8])
    for name, seconds in (("ours bf16", [9, 1, 1]), ("RecTools bf16", [9, 20, 20])):
        report["results"][0]["players"].append(
            {"name": name, "seconds": seconds, "peak_memory_gb": 1.0}
        )
    assert figures_of(report)[0].name == "ml1m, best: ratio"
    assert figures_of(report)[0].value == 8


def test_every_kept_result_has_figures() -> None:
    files = sorted(RESULTS.glob("*.json"))
    assert files
    for file in files:
        report = json.loads(file.read_text())
        if report["benchmark"] in ("quality", "ta_feng", "clicks", "training"):
            names = [figure.name for figure in figures_of(report)]
            assert names and len(set(names)) == len(names)


def test_what_differs_is_warned_of() -> None:
    old = training([1, 1], [2, 2])
    new = training([1, 1], [2, 2], versions={"torch": "2.16.0"}, settings=["x=1"])
    new["results"][0]["players"][1]["threads"] = 2
    new["rows"] = [{"seeds": {"hr_10": [0.1, 0.2]}}]  # measured, one a seed
    assert differences(old, old) == []
    assert sorted(differences(old, new)) == [
        "results.ml1m.players.RecTools 32.threads differs: 1 and 2",
        "settings differs: not given and ['x=1']",
        "versions.torch differs: 2.15.0 and 2.16.0",
    ]


def test_the_command(command: Any) -> None:
    fast = training([9, 1.0, 1.1, 1.0], [9, 10.0, 10.1, 10.2])
    slow = training([9, 2.0, 2.1, 2.0], [9, 10.0, 10.1, 10.2])
    code, said = command(fast, slow)
    assert not code
    assert said.index("ml1m, 32: ours, s | 1.033 | 2.033 | +96.8 % | ±12.7 % | worse") < said.index(
        "ml1m, 32: RecTools, s | 10.1 | 10.1 | +0.0 %"
    )
    assert "2 of 4 moved" in said
    assert command(fast, slow, "--fail")[0] == 1
    assert not command(slow, fast, "--fail")[0]


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("{", {"benchmark": "training"}, "is no JSON"),
        ("[]", {"benchmark": "training"}, "is no result of a benchmark"),
        ({"benchmark": "no_such"}, {"benchmark": "training"}, "no benchmark 'no_such'"),
        ({"benchmark": "turns"}, {"benchmark": "turns"}, "has no figures"),
        (
            training([1, 1], [2, 2]),
            {"benchmark": "clicks", "tables": {}, "differences": []},
            "different benchmarks: training and clicks",
        ),
        (training([1, 1], [2, 2]), {"benchmark": "training", "results": []}, "no figure is in"),
    ],
)
def test_refused(old: Any, new: Any, said: str, command: Any) -> None:
    assert said in command(old, new)[0]
