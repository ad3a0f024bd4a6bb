"""Ending on SIGINT (Ctrl-C) and SIGTERM (schedulers) with a line and not with a traceback."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """SIGINT or SIGTERM came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a shell reports of a program that a signal ended."""
        return 128 + self.number


@contextlib.contextmanager
def on_stop(react: Callable[[int], None]) -> Iterator[None]:
    """Calls react(number) on SIGINT or SIGTERM; a second one does what it did before."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        for each, handler in before.items():
            signal.signal(each, handler)
        react(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stoppable() -> contextlib.AbstractContextManager[None]:
    """SIGINT and SIGTERM raise Stopped, so that what is half written is removed."""

    def give_up(number: int) -> None:
        raise Stopped(number)

    return on_stop(give_up)
