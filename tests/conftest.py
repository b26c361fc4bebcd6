"""For all tests."""

import signal


def pytest_configure() -> None:
    """Take interruptions as in the foreground: a run started in the background ignores them, and its children too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
