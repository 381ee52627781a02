"""What all tests share."""

from hypothesis import HealthCheck, settings

# Laws, not timings: a loaded machine is no failure.
settings.register_profile(
    "recsys", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=False
)
settings.load_profile("recsys")
