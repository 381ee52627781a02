"""The way into every command: help, exit codes, interruption, litter, an installed wheel."""

import errno
import os
import signal
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import polars as pl
import pytest

from pipelines import paths
from pipelines.entry import explain
from recsys.logs.errors import LogError

CHECKOUT = Path(__file__).resolve().parents[2]
ENTRY = """
import os, signal
from pipelines.entry import main
from pipelines.schemas import IngestConfig
def run(config):
    {body}
main("ingest", IngestConfig, run, "A command.")
"""


def log_file(path: Path, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"uid": [1, 1, 2, 2], "sku": ["a", "b", "a", "c"], "ts": [1, 2, 3, 4], **columns}
    pl.DataFrame(data).write_parquet(path)
    return path


@pytest.mark.parametrize("name", ["ingest", "train", "evaluate"])
def test_help(place, name: str) -> None:
    done = place.command(name, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert f"python -m pipelines.{name} " in done.stdout  # an example
    assert "data: amazon_beauty, log, ml_100k, ml_1m" in done.stdout
    assert "result: a file" in done.stdout
    assert place.files == set()


HEAVY = {"torch", "mlflow", "pytorch_lightning", "polars", "numpy", "scipy", "matplotlib"}


COMMANDS = ["train", "evaluate", "compare", "backtest", "recommend", "ingest", "ui"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_errors_import_nothing_heavy(place, name: str) -> None:
    for argument, heavy, code in (("--help", HEAVY | {"hydra"}, 0), ("sead=3", HEAVY, 2)):
        script = f"""
import runpy, sys
sys.argv = ["{name}", "{argument}"]
try:
    runpy.run_module("pipelines.{name}", run_name="__main__")
except SystemExit as end:
    print("heavy:", sorted({heavy} & set(sys.modules)), end.code)
"""
        done = place.python("-c", script)
        assert done.stdout.splitlines()[-1] == f"heavy: [] {code}"


def test_the_settings_can_be_shown(place) -> None:
    done = place.command("ingest", "--cfg", "job", "data=log", "data.path=a b.csv")
    assert done.returncode == 0
    assert "  path: a b.csv\n" in done.stdout
    assert place.files == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hlep"], "unknown option '--hlep'. Did you mean '--help'?"),
        (["--data=log"], "Settings are written without dashes: data=log"),
        (["--config-dir", "nowhere"], "there is no folder"),
        (["resul"], "KEY=VALUE"),
    ],
)
def test_wrong_options(place, arguments: list[str], words: str) -> None:
    assert words in place.refused("ingest", *arguments)


def test_result_is_checked_before_any_work(place) -> None:
    log_file(place.folder / "log.parquet")
    (place.folder / "out").mkdir()
    message = place.refused("ingest", "data=log", "data.path=log.parquet", "result=out")
    assert "result=out is a folder" in message


def run_body(place, body: str, **variables: str):
    return place.python("-c", ENTRY.format(body=body), **variables)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("from recsys.logs.errors import LogError; raise LogError('no rows')", 2, "Error: no rows"),
        ("raise OSError(28, 'No space left on device', 'x.npy')", 1, "the disk is full"),
        ("open('missing/file')", 1, "missing/file"),
        ("raise KeyboardInterrupt", 130, "Interrupted."),
    ],
)
def test_exit_codes(place, body: str, code: int, words: str) -> None:
    done = run_body(place, body)
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr


def test_an_error_of_ours_keeps_its_traceback(place) -> None:
    done = run_body(place, "{}['lost']")
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError" in done.stderr


def test_the_traceback_can_be_asked_for(place) -> None:
    body = "from recsys.logs.errors import LogError; raise LogError('no rows')"
    done = run_body(place, body, RECSYS_TRACEBACK="1")
    assert "Traceback" in done.stderr and "no rows" in done.stderr


def test_control_c(place) -> None:
    """The signal arrives while the command works."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY.format(body="print('working', flush=True); signal.pause()")],
        cwd=place.folder,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "Interrupted.\n"


def test_a_reader_that_goes_away(place) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", ENTRY.format(body="print('x')")],
        cwd=place.folder,
        env=place.environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""


def test_errors_are_told_apart() -> None:
    assert explain(LogError("no rows")) == ("no rows", 2)
    assert explain(KeyError("x")) is None
    assert explain(ValueError("raised nowhere")) is None
    try:
        int("x")  # raised here, in the tests: not ours
    except ValueError as error:
        assert explain(error) is None
    for code in (errno.ENOSPC, errno.EFBIG):
        assert explain(OSError(code, "no")) == (
            f"the disk is full, or a file may not grow so large ([Errno {code}] no).",
            1,
        )
    from_library = RuntimeError("write failed")
    from_library.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert explain(from_library) is not None
    assert explain(RuntimeError("database or disk is full")) is not None


def test_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path))
    assert paths.root() == tmp_path
    assert paths.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.delenv("RECSYS_HOME")
    assert paths.root() == CHECKOUT
    monkeypatch.setattr(paths, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert paths.root() == tmp_path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked: what `pip install .` puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_package_and_config(installed: Path) -> None:
    def kept(root: Path, package: str) -> set[str]:
        return {
            str(file.relative_to(root))
            for suffix in ("*.py", "*.yaml")
            for file in (root / package).rglob(suffix)
        }

    for package in ("recsys", "pipelines", "conf"):
        assert kept(installed, package) == kept(CHECKOUT, package)


def test_an_installed_wheel_works_anywhere(place, installed: Path) -> None:
    log_file(place.folder / "events" / "a.parquet")
    log_file(place.folder / "events" / "b.parquet", uid=[3, 3, 3, 3])
    place.python_path = str(installed)
    done = place.command(
        "ingest",
        "data=log",
        "data.path=events/*.parquet",
        "data.columns.user=uid",
        "data.columns.item=sku",
        "data.columns.time=ts",
        "result=out/table.json",
        RECSYS_HOME=None,
    )
    assert done.returncode == 0, done.stderr
    assert (place.folder / "data" / "cache" / "stores").is_dir()  # ROOT: the working directory
    assert {file.split("/")[0] for file in place.files} == {"data", "events", "out"}


def test_torch_is_bounded_below_only() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert all(">=" in bound and "<" not in bound and "==" not in bound for bound in bounds)


@pytest.mark.parametrize("command", ["train", "evaluate run=latest"])  # which reads it at once
def test_what_is_no_address_of_a_store_is_refused_at_once(place, command: str) -> None:
    message = place.refused(*command.split(), "tracking.uri=localhost:5000")
    assert "Did you mean http://localhost:5000?" in message
