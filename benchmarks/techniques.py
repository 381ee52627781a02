r"""What each technique of a training step gains: the step as it is, and without one of them.

    python -m benchmarks.techniques                      # publishers' data
    python -m benchmarks.techniques --data DIR --only din --steps 40 --rounds 5
    python -m benchmarks.techniques --show benchmarks/results/*_techniques.json

SASRec as in `experiment=sasrec_ml1m` and DIN as in `experiment=din_ml1m`, each in processes of its
own that take turns: one with everything, the others with one thing replaced by what it stands for.
A round is the same training steps (batches, forward, backward, update) of each; the first round is
not counted. The gain is the median over the rounds of the time without over the time with.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, of_rounds
from benchmarks.record import circumstances, command_line, show_again, write
from benchmarks.turns import Player, report_end, report_seconds, take_turns, wait_for_turn

RECIPES = {"sasrec": "sasrec_ml1m", "din": "din_ml1m"}
ALL = "everything"


def without_bfloat16() -> None:
    """float32 throughout."""
    from recsys.training import precision

    precision.has_fast_bf16 = lambda: False


def without_kept_memory() -> None:
    """What a step frees goes back to the system."""
    from recsys.training import memory

    memory.keep_freed_memory = lambda: False


def without_few_kernels() -> None:
    """OneDNN keeps a kernel for each of the latest thousand shapes."""
    from recsys.training import memory

    memory.keep_few_kernels = lambda: None


def without_bulk_dropout() -> None:
    """One random number for each element."""
    import torch

    from recsys.attention.dropout import Dropout

    def forward(self: Dropout, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, self.rate, self.training)

    Dropout.forward = forward  # type: ignore[method-assign]


def without_products() -> None:
    """Torch's flash kernel at any length."""
    from recsys.attention import kernels

    kernels.SHORT = 0


def without_fused_softmax() -> None:
    """All logits of a batch in memory, differentiated by autograd."""
    from recsys.objectives import full_softmax

    full_softmax.full_softmax = full_softmax.full_softmax_reference  # type: ignore[assignment]


def without_buckets() -> None:
    """Batches of histories of any length."""
    from recsys.histories import batches

    batches.BLOCK = 1


def without_folded_unit() -> None:
    """The activation unit as the formula is written: four inputs for each event."""
    from recsys.attention.target import ActivationUnit

    ActivationUnit.forward = ActivationUnit.reference  # type: ignore[method-assign]


def without_portions() -> None:
    """Dice as the formula is written, differentiated by autograd."""
    from recsys.attention.activations import Dice

    Dice.forward = Dice.reference  # type: ignore[method-assign]


TECHNIQUES: dict[str, dict[str, Callable[[], None]]] = {
    "sasrec": {
        "bfloat16 products": without_bfloat16,
        "softmax in chunks, its gradient with it": without_fused_softmax,
        "attention by three products": without_products,
        "dropout from bulk bytes": without_bulk_dropout,
        "histories of like length together": without_buckets,
        "freed memory kept": without_kept_memory,
        "few kernels kept": without_few_kernels,
    },
    "din": {
        "bfloat16 products": without_bfloat16,
        "activation unit folded": without_folded_unit,
        "Dice in portions of the cache": without_portions,
        "freed memory kept": without_kept_memory,
    },
}


def main() -> None:
    """Runs, prints, writes; or is one of those that take turns."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, help="folder with ml1m.parquet and its side tables")
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=5, help="1 of them to warm up")
    parser.add_argument("--steps", type=int, default=30, help="of a round")
    parser.add_argument("--play", nargs=2)
    arguments = parser.parse_args()
    if arguments.play:
        name, technique = arguments.play
        play(name, technique, arguments.steps, arguments.data)
        return
    if show_again(arguments, render):
        return
    if arguments.rounds < 2:
        sys.exit("--rounds: the first is not counted, so 2 at least")
    if arguments.data is not None and not (arguments.data / "ml1m.parquet").is_file():
        sys.exit(f"there is no {arguments.data / 'ml1m.parquet'}")
    report = {
        **circumstances("techniques"),
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "results": [measure(name, arguments) for name in arguments.only],
    }
    print(render(report), flush=True)
    write(report, "techniques")


def measure(name: str, arguments: Any) -> dict[str, Any]:
    """All rounds of one model."""
    command = [sys.executable, "-m", "benchmarks.techniques", "--steps", str(arguments.steps)]
    if arguments.data is not None:
        command += ["--data", str(arguments.data.resolve())]
    players = [
        Player(f"{name}: {technique}", [*command, "--play", name, technique])
        for technique in (ALL, *TECHNIQUES[name])
    ]
    take_turns(players, arguments.rounds)
    return {
        "name": name,
        "players": [
            {"name": player.name.partition(": ")[2], "seconds": player.seconds, **player.end()}
            for player in players
        ],
    }


def play(name: str, technique: str, steps: int, data: Path | None) -> None:
    """The steps of each round, without the technique."""
    if technique != ALL:
        TECHNIQUES[name][technique]()  # before anything below imports what it replaces
    import torch

    from pipelines.clicks import make_ranker
    from pipelines.entry import compose
    from pipelines.fitting import task_and_batches
    from pipelines.schemas import SASRecConfig, TrainConfig
    from pipelines.train import click_job, make_model, next_item_job
    from recsys.training import memory, precision

    settings = [f"experiment={RECIPES[name]}"]
    if data is not None:
        settings.append(f"data.path={data / 'ml1m.parquet'}")
    config = compose("train", TrainConfig, settings)
    if isinstance(config.model, SASRecConfig):
        judge: Any = next_item_job(config)
        model = make_model(config.model, judge.store.catalogue_size, config.seed)
    else:
        judge = click_job(config)
        model = make_ranker(
            config.model, judge.store.catalogue_size, judge.columns.sizes, config.seed
        )
    task: Any
    task, batches = task_and_batches(config, judge, model)
    memory.keep_freed_memory()
    if isinstance(config.model, SASRecConfig):
        memory.keep_few_kernels()
    low = precision.resolve(config.trainer.precision) == "bf16-mixed"
    optimizer = task.configure_optimizers()["optimizer"]
    task.train()
    played = 0
    while wait_for_turn(first=played == 0):
        # Other batches in each round: kernels made for the shapes of the last one are of no use.
        batches.load_state_dict({"epoch": played, "next_batch": 0})
        played += 1
        begun = time.perf_counter()
        for step, batch in enumerate(islice(batches, steps)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = task.training_step(batch, step)
            loss.backward()
            optimizer.step()
        report_seconds(time.perf_counter() - begun)
    report_end(threads=torch.get_num_threads())


def gains(result: dict[str, Any]) -> dict[str, list[float]]:
    """Of each technique: the time without over the time with, in each counted round."""
    whole, *others = result["players"]
    return {
        other["name"]: [
            without / own
            for own, without in zip(whole["seconds"][1:], other["seconds"][1:], strict=True)
        ]
        for other in others
    }


def render(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    hardware = report["hardware"]
    lines = [
        f"A training step, {hardware['cores']} cores of {hardware['cpu']}, median of "
        f"{report['rounds'] - 1} rounds of {report['steps']} steps",
        "",
        "| model | technique | gain | lowest–highest | memory with | without |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for result in report["results"]:
        memory = {player["name"]: player["peak_memory_gb"] for player in result["players"]}
        seconds = median(result["players"][0]["seconds"][1:]) / report["steps"]
        lines.append(
            f"| {result['name']} | all of them: {1000 * seconds:.0f} ms a step | | "
            f"| {memory[ALL]:.1f} GB | |"
        )
        for technique, ratios in gains(result).items():
            lines.append(
                f"| {result['name']} | {technique} | {median(ratios):.2f}× "
                f"| {min(ratios):.2f}–{max(ratios):.2f} | | {memory[technique]:.1f} GB |"
            )
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[Figure]:
    """The gains, and the milliseconds of a step with everything."""
    found = []
    for result in report["results"]:
        steps = [1000 * s / report["steps"] for s in result["players"][0]["seconds"][1:]]
        found.append(of_rounds(f"{result['name']}: a step, ms", steps, "lower"))
        for technique, ratios in gains(result).items():
            found.append(of_rounds(f"{result['name']}: {technique}", ratios, "higher"))
    return found


if __name__ == "__main__":
    main()
