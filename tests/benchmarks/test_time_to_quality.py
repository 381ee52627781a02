"""The table of `benchmarks.time_to_quality`: epochs of the peer's faster precision."""

from __future__ import annotations

import pytest

from benchmarks.time_to_quality import figures, render

REPORT = {
    "hardware": {"cores": 2, "cpu": "c"},
    "seeds": [1],
    "rounds": 3,
    "results": [
        {
            "name": "ml1m",
            "recipe": "sasrec_ml1m",
            "seconds": [500.0, 700.0],
            "peak_memory_gb": [1.2, 1.4],
            "rows": [
                {
                    "model": "SASRec",
                    "metrics": {
                        "val/loo-full-unseen/hr_10": 0.9,
                        "test/loo-full-unseen/hr_10": 0.32,
                        "test/loo-full-unseen/ndcg_10": 0.18,
                    },
                }
            ],
            "peers": [
                {"name": "bf16", "seconds": [900.0, 110.0, 90.0]},
                {"name": "32", "seconds": [900.0, 210.0, 190.0]},
            ],
        }
    ],
}


def test_a_run_is_told_in_epochs_of_the_faster_peer() -> None:
    line = "| sasrec_ml1m | 6.0 | 600 s | 100 s in bf16, 200 s in 32 | 0.3200 | 0.1800 | 1.4 GB |"
    assert line in render(REPORT)
    found = {figure.name: figure.value for figure in figures(REPORT)}
    assert found["ml1m: RecTools epochs"] == 6
    assert found["ml1m: HR@10"] == 0.32
    assert found["ml1m: ours, GB"] == pytest.approx(1.3)
