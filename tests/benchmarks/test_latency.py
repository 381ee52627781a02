"""`benchmarks.latency` and `benchmarks.start_up`: a small run, and their figures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import latency, start_up


def test_a_small_run() -> None:
    milliseconds = latency.measure(latency.loaded(items=50, width=8, length=4), 4, requests=20)
    assert [len(part) for part in milliseconds] == [2] * latency.ROUNDS
    assert min(min(part) for part in milliseconds) > 0
    found = latency.figures({"results": [{"name": "length 4", "milliseconds": milliseconds}]})
    assert [figure.name for figure in found] == [f"length 4: p{p}, ms" for p in (50, 90, 99)]
    medians = [np.median(part) for part in milliseconds]
    assert found[0].value == pytest.approx(np.mean(medians), rel=1e-12)
    assert found[0].value <= found[2].value


def test_the_ratio_is_that_of_each_round() -> None:
    results = [
        {"name": "python -c pass", "seconds": [1.0, 2.0]},
        {"name": "train --help", "seconds": [4.0, 8.0]},
    ]
    found = {figure.name: figure for figure in start_up.figures({"results": results})}
    assert found["train --help: × doing nothing"].value == 4
    assert found["train --help: × doing nothing"].error == 0
    assert found["train --help: s"].value == 6
    assert "python -c pass: × doing nothing" not in found
