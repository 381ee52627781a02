r"""Look at the experiments: MLflow's UI, opened on the latest run.

Examples:
  python -m pipelines.ui
  python -m pipelines.ui run=RUN_ID
  python -m pipelines.ui run=null
  python -m pipelines.ui port=5050 browser=false

Starts the UI and stays until Ctrl-C, or says where one that shows the same store runs already. The
addresses it prints open on runs; MLflow's bare address opens on its GenAI overview.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from pipelines.checking import ConfigError
from pipelines.entry import main
from pipelines.paths import outbox_dir, tracking_uri
from pipelines.schemas import UIConfig


def run(config: UIConfig) -> int:
    """Find or start the UI, print where to look, wait."""
    if not 1 <= config.port <= 65535:
        raise ConfigError(f"port={config.port} is no port: 1 to 65535")
    from pipelines.runs import find_run
    from recsys.tracking.experiments import find_experiment
    from recsys.tracking.reading import latest_run_id, load_run
    from recsys.tracking.ui import find_ui, run_link, runs_link, started_ui

    uri = config.tracking.uri or tracking_uri()
    run_id = config.run
    if run_id is None or run_id == "latest":
        experiment = find_experiment(uri, config.tracking.experiment)
        run_id = run_id and latest_run_id(uri, experiment)
    else:  # an unknown run is said here, and not by an empty page
        asked = find_run(run_id, config.tracking.uri)
        run_id, experiment = asked.run_id, find_experiment(uri, asked.experiment)

    def show(address: str) -> None:
        table = runs_link(address, experiment)
        print(f"All runs: {table}")
        page = table
        if run_id is not None:
            info = load_run(uri, run_id)
            page = run_link(address, info.experiment_id, run_id)
            print(f"{info.name}: {page}")
        sys.stdout.flush()
        if config.browser:
            open_page(page)

    address, port = find_ui(uri, experiment, config.port)
    if address is not None:
        print(f"The MLflow UI is there already: {address}")
        show(address)
        return 0
    if port != config.port:
        print(f"Port {config.port} is taken by another program; {port} is free.")
    signal.signal(signal.SIGTERM, _leave)
    with started_ui(uri, port) as (address, process):
        print(f"The MLflow UI runs at {address} until Ctrl-C.")
        show(address)
        # Not process.wait(): Polars' handler of Ctrl-C has the system go on waiting.
        while (code := process.poll()) is None:
            time.sleep(0.5)
    print(f"The MLflow UI ended by itself (exit code {code}).", file=sys.stderr)
    return 1


def open_page(address: str) -> None:
    """Shows a page in the user's browser, if there is a screen for one."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    if sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in screens):
        import webbrowser

        webbrowser.open(address)


def in_the_ui(run_id: str, holding: str = "") -> str:
    """The words before `how_to_open`.

    Args:
        run_id: MLflow's id.
        holding: an artifact worth naming.
    """
    from recsys.tracking.outbox import is_waiting

    once = ", once it is delivered" if is_waiting(outbox_dir(), run_id) else ""
    artifact = f", with {holding} among its artifacts" if holding else ""
    return f"The run in the MLflow UI{once}{artifact}:"


def how_to_open(run_id: str, uri: str | None) -> str:
    """The command that shows a run, as it can be typed here; of one that waits, that delivers it.

    Args:
        run_id: MLflow's id.
        uri: `tracking.uri`, null for the default store.
    """
    from recsys.tracking.outbox import is_waiting
    from recsys.tracking.store import without_password

    where = [] if uri is None else [f"tracking.uri={without_password(uri)}"]
    if is_waiting(outbox_dir(), run_id):
        deliver = as_typed("sync", *where)
        return f"its results wait on this machine; once the server can be reached: {deliver}"
    return as_typed("ui", f"run={run_id}", *where)


def as_typed(name: str, *arguments: str) -> str:
    """A command with its arguments, as it can be typed here."""
    python = sys.executable
    on_path = shutil.which("python")
    if on_path is not None and Path(on_path).absolute() == Path(python).absolute():
        python = "python"
    elif Path(python).is_relative_to(Path.cwd()):
        python = str(Path(python).relative_to(Path.cwd()))
    return shlex.join([python, "-m", f"pipelines.{name}", *arguments])


def _leave(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main("ui", UIConfig, run, __doc__ or "")
