"""Ctrl-C and polite kills as a wish to stop after the step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Attention"]


class Attention:
    """While it is entered, notes the first SIGINT or SIGTERM; a second one interrupts at once.

    Worker processes that are forked meanwhile inherit this, so that Ctrl-C does not kill them under
    the step that is to be finished. Outside the main thread, where signals do not arrive, it does nothing.

    Attributes:
        is_asked: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            signal.default_int_handler(number, frame)
        self.is_asked = True
