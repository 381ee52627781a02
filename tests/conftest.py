"""What all tests share."""

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from recsys.tracking.store import local_store, open_client

# Laws, not timings: a loaded machine is no failure. The same examples everywhere, so that what
# passes here passes there; `--hypothesis-profile=search` draws others in each run.
no_timing = [HealthCheck.too_slow]
settings.register_profile(
    "recsys", deadline=None, suppress_health_check=no_timing, derandomize=True, database=None
)
settings.register_profile(
    "search", deadline=None, suppress_health_check=no_timing, derandomize=False
)
settings.load_profile("recsys")

# A shell that starts the tests in the background has them ignore Ctrl-C, and the commands they
# start too; the tests of Ctrl-C need it to mean something.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh store costs seconds to make, a copy of an empty one nothing."""
    root = tmp_path_factory.mktemp("empty store")
    open_client(local_store(root)[0])
    return root / "mlflow.db"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: two workers that take whole files then end at nearly the same time."""
    long = ("pipelines", "tracking", "training", "serving")
    items.sort(key=lambda item: item.path.parent.name not in long)
