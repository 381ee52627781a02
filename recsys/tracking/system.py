"""What a run takes of its machine, looked at now and then while it runs.

A thread of its own looks, and only that: what it saw waits here until the run writes its metrics.
So nothing but the run itself ever speaks to the store, and a store that is away stops no training.
MLflow's own monitor (seen in 3.17.2) asks the store for the run's status at every look.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass

# The names of MLflow's own monitor where it has one, so that its pages know them.
PREFIX = "system/"
SECONDS = 5.0


@dataclass(frozen=True)
class Sample:
    """One look.

    Attributes:
        time: in milliseconds since 1970.
        values: by the name of the metric.
    """

    time: int
    values: dict[str, float]


class SystemSampler:
    """Looks every few seconds until it is stopped."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Begins to look.

        Args:
            seconds: between two looks.
        """
        import psutil

        self._psutil = psutil
        self._process = psutil.Process()
        self._seconds = seconds
        self._samples: list[Sample] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system metrics", daemon=True)
        self._thread.start()

    def taken(self) -> list[Sample]:
        """What was seen since this was last asked."""
        with self._lock:
            samples, self._samples = self._samples, []
        return samples

    def stop(self) -> None:
        """Looks a last time and ends; later calls change nothing."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        self._psutil.cpu_percent()  # the first of a thread has nothing to compare with, and says 0
        self._process.cpu_percent()
        while not self._stopped.wait(self._seconds):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            memory = self._psutil.virtual_memory()
            values = {
                "cpu_utilization_percentage": self._psutil.cpu_percent(),
                "system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
                "system_memory_usage_percentage": memory.percent,
                "process_cpu_percentage": self._process.cpu_percent(),
                "process_memory_megabytes": self._process.memory_info().rss / 1e6,
                **_of_gpu(),
            }
        except (self._psutil.Error, OSError, RuntimeError):
            return  # a look that fails is a look less
        values = {PREFIX + name: value for name, value in values.items()}
        with self._lock:
            self._samples.append(Sample(int(time.time() * 1000), values))


def _of_gpu() -> dict[str, float]:
    """Memory of the GPU that PyTorch works on, if it does."""
    torch = sys.modules.get("torch")  # not imported for this: it takes seconds
    cuda = getattr(torch, "cuda", None)  # a module may be half imported
    if cuda is None or not getattr(cuda, "is_initialized", bool)():
        return {}
    (free, total), gpu = cuda.mem_get_info(), f"gpu_{cuda.current_device()}"
    return {
        f"{gpu}_memory_usage_megabytes": (total - free) / 1e6,
        f"{gpu}_memory_usage_percentage": (total - free) / total * 100,
    }
