"""Work for the tests of workers: light, since every process that replaces a lost one imports it."""

import os
import signal
import time

from numllm.errors import DataError


def misbehave(item: int) -> int:
    """The square; some items crash, hang, exit, ask for too much memory or fail."""
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 5:
        time.sleep(60)
    if item == 7:
        os._exit(9)
    if item == 8:
        try:
            return len(bytearray(3 << 30))
        except MemoryError:
            return -8
    if item < 0:
        raise DataError("negative")
    return item * item


def misbehave_all(items: list[int]) -> list[int]:
    return [misbehave(item) for item in items]
