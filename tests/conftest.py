"""For all tests."""

import signal

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None, print_blob=True)
# the same commit passes or fails each time; `make test-explore` looks for examples that nobody has seen
settings.load_profile("fixed")


def pytest_configure() -> None:
    """Take interruptions as in the foreground: a run started in the background ignores them, and its children too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
