"""Stopping a run without losing anything: after its next checkpoint, on a signal or when its time is over."""

import signal
import sys
import time


class Stopped(Exception):
    """A run was asked to stop, and does so after a checkpoint; `signal` is the signal's number, or 0."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Stop:
    """Listens for SIGINT and SIGTERM, and to the clock; a second signal stops the program at once."""

    def __init__(self, hours: float | int | None = None) -> None:
        self.signal, self.end = 0, None if hours is None else time.monotonic() + 3600 * hours
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        print("stopping after the next checkpoint; once more stops at once", file=sys.stderr)

    def check(self) -> None:
        """Raise Stopped if it is time; called between cells, and after each checkpoint."""
        if self.signal or (self.end is not None and time.monotonic() > self.end):
            raise Stopped(self.signal)
