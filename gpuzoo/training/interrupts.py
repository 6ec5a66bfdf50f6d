"""Handle Ctrl-C, SIGTERM and a closed terminal during a training."""

import os
import signal
import threading
from typing import ClassVar

from gpuzoo.report.notebook import in_notebook


class Interrupts:
    """Signal handlers for the time of a run.

    While a run is being set up a signal ends it at once or, if a library's callback has
    swallowed the exception, once it is set up. While it trains, the first signal asks
    the loop to stop, and a second one kills the process; in a notebook it raises
    KeyboardInterrupt.
    """

    late: ClassVar[bool] = False
    """Whether a signal came too late to stop the last run: whoever trains several ends
    now."""

    def __init__(self):
        self.training = False
        self._asked = threading.Event()
        self._before: dict = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # nohup ignores SIGHUP: leave it so.
                ignored = number and signal.getsignal(number) is signal.SIG_IGN
                if number and not (ignored and name == "SIGHUP"):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        Interrupts.late = self.training and self.asked()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        return self._asked.is_set()

    def end_if_asked(self) -> None:
        if self.asked():
            raise KeyboardInterrupt

    def _handle(self, number, frame) -> None:
        if not self.training:
            self._asked.set()
            raise KeyboardInterrupt
        if self._asked.is_set() and in_notebook():
            raise KeyboardInterrupt  # the kernel has other things in its memory
        if self._asked.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked.set()
