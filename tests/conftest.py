"""What holds for the whole suite."""

import signal


def pytest_configure():
    """Let commands that tests interrupt be interrupted: a job in the background ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
