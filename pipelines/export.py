r"""A tracked run's model as one file for other runtimes: ONNX, or a program of torch.export.

Examples:
  python -m pipelines.export run=latest output=sasrec.onnx
  python -m pipelines.export run=RUN_ID format=torch output=din.pt2

A next-item model takes item indices, right-padded with 0, and the histories' lengths, and gives
scores of all items; a ranker takes the tensors of its questions and gives their logits. The JSON
file beside the output names them, and the fingerprint of the item vocabulary: index i stands for
row i of items.parquet in the run's model, counted from 1. Batch and length are free.

ONNX needs the packages of the extra: pip install 'recsys[onnx]'. To answer histories of raw ids
over HTTP, serve the run's model as it is: mlflow models serve -m runs:/RUN_ID/model.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipelines.class_paths import check_consent
from pipelines.entry import main
from pipelines.judging import say
from pipelines.runs import trained_run
from pipelines.schemas import ClicksConfig, ExportConfig
from pipelines.ui import how_to_open


def run(config: ExportConfig) -> None:
    """Load, trace, write."""
    started = time.perf_counter()
    from recsys.serving.export import (
        check_output,
        example_batch,
        export_next_item,
        export_ranker,
        write_program,
    )
    from recsys.training.saved_model import load_model

    output = Path(config.output).expanduser()
    check_output(output, config.format)
    info, trained = trained_run(config.run, config.tracking)
    named = f"run {info.run_id} ('{info.name}')"
    check_consent(trained, config.trusted_modules, named, data=False)
    folder = info.model()
    model, described = load_model(folder, config.trusted_modules)
    if isinstance(trained.questions, ClicksConfig):
        from recsys.histories.features import FittedFeatures

        features = FittedFeatures.load(folder / "features.json")
        length: Any = model.max_length
        program = export_ranker(model, example_batch(features, length))
    else:
        program = export_next_item(model)
    say(f"{described['name']} of {named}: tracing …")
    beside = write_program(program, output, config.format, described)
    for name, of in program.inputs.items():
        say(f"  {name}: {of['type']} [{', '.join(map(str, of['dimensions']))}]")
    say(f"  → {program.output}")
    size = output.stat().st_size / 1e6
    say(f"{size:,.1f} MB in {time.perf_counter() - started:.0f} s: {output}, told in {beside}")
    say("The run of the model in the MLflow UI:")
    say(how_to_open(info.run_id, config.tracking.uri))


if __name__ == "__main__":
    main("export", ExportConfig, run, __doc__ or "")
