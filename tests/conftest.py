"""What all tests share."""

import signal

from hypothesis import HealthCheck, settings

# Laws, not timings: a loaded machine is no failure.
settings.register_profile("recsys", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("recsys")

# A shell that starts the tests in the background has them ignore Ctrl-C, and the commands they
# start too; the tests of Ctrl-C need it to mean something.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
