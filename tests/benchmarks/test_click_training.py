"""The table of `benchmarks.click_training`: who stands beside whom, and what is counted."""

from __future__ import annotations

from typing import Any

from benchmarks.click_training import figures, render, settings_of
from benchmarks.sides import pairs_of

SPEEDS = {
    "ours Dice bf16": 40,
    "ours ReLU bf16": 80,
    "FuxiCTR bf16": 5,
    "ours Dice 32": 20,
    "ours ReLU 32": 30,
    "FuxiCTR 32": 10,
}


def result(speeds: dict[str, int]) -> dict[str, Any]:
    """Rounds of one second and of two; the first, which warms up, is far too slow."""
    players = [
        {
            "name": name,
            "seconds": [100.0, 1.0, 2.0],
            "rows": [1, speed, 2 * speed],
            "peak_memory_gb": 1.0,
        }
        for name, speed in speeds.items()
    ]
    return {"name": "din", "players": players}


def test_each_activation_and_precision_has_its_peer_and_the_best_have_theirs() -> None:
    report = {
        "hardware": {"cores": 2, "cpu": "c"},
        "rounds": 3,
        "settings": {"steps": 7},
        "results": [result(SPEEDS)],
    }
    ratios = {f.name: f.value for f in figures(report) if f.name.endswith("ratio")}
    assert ratios == {
        "din, Dice, best: ratio": 4.0,  # ours in bf16 against FuxiCTR in float32
        "din, Dice, bf16: ratio": 8.0,
        "din, Dice, 32: ratio": 2.0,
        "din, ReLU, best: ratio": 8.0,
        "din, ReLU, bf16: ratio": 16.0,
        "din, ReLU, 32: ratio": 3.0,
    }
    assert all(f.error == 0 for f in figures(report) if not f.name.endswith("GB"))
    assert "| din, Dice, best | 4.0× | 4.0–4.0 | 40 rows/s | 10 rows/s |" in render(report)


def test_one_precision_needs_no_best() -> None:
    only = {name: speed for name, speed in SPEEDS.items() if name.endswith("32")}
    assert [name for name, _, _ in pairs_of(result(only))] == ["Dice, 32", "ReLU, 32"]


def test_the_settings_are_those_of_the_click_table() -> None:
    from pipelines.entry import compose
    from pipelines.schemas import TrainConfig

    for name, kind in (("din", "din"), ("mean pooling", "mean_pooling")):
        config = compose("train", TrainConfig, settings_of(name)["ReLU"])
        assert (config.model.name, config.model.activation) == (kind, "relu")
        assert (config.model.width, config.model.field_width) == (32, 32)
        assert (config.model.hidden, config.model.max_length) == ([256, 128], 50)
        assert config.trainer.rows_per_batch == 4096
        assert config.questions.skip_first == 5
