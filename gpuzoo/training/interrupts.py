"""What Ctrl-C, SIGTERM and a closed terminal do to a training."""

import os
import signal
import threading


class Interrupts:
    """What Ctrl-C, SIGTERM and a closed terminal do.

    While a run is being set up they end it at once, or, where a library's callback has
    swallowed that, once it is set up. While it trains, the first asks the loop to end,
    and a second one kills the process.
    """

    def __init__(self):
        self.training = False
        self._asked = threading.Event()
        self._before: dict = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # nohup has it ignored that the terminal is closed.
                ignored = number and signal.getsignal(number) is signal.SIG_IGN
                if number and not (ignored and name == "SIGHUP"):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
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
        if self._asked.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked.set()
