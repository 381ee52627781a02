"""Python that knows the packages, and of this project only what a model brings along."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# Run by every Python that starts there, the servers that MLflow starts among them.
HIDES_THE_CHECKOUT = """
import sys
from pathlib import Path
sys.path[:] = [path for path in sys.path if not (Path(path) / "recsys").is_dir()]
"""


@dataclass
class Elsewhere:
    """An empty working directory in which neither `recsys` nor `pipelines` can be imported."""

    folder: Path
    hiding: Path

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(self.hiding),
            "PATH": f"{self.hiding}:{os.environ['PATH']}",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "POLARS_MAX_THREADS": "1",
            **more,
        }

    def python(self, *arguments: str, **more: str) -> str:
        """What it prints; it must not fail."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    hiding = tmp_path_factory.mktemp("hiding")
    (hiding / "sitecustomize.py").write_text(HIDES_THE_CHECKOUT)
    # `mlflow models serve` calls it by name, which finds it in an activated environment only.
    uvicorn = hiding / "uvicorn"
    uvicorn.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uvicorn "$@"\n')
    uvicorn.chmod(0o755)
    return Elsewhere(tmp_path_factory.mktemp("elsewhere"), hiding)
