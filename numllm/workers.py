"""Work on several processes, in order, that outlives a process which crashes, hangs or runs out of memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from .errors import NumLLMError

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS = 600
"""Longest time for one item."""
MEMORY = 1 << 30
"""Bytes of data a process may hold; beyond them Python raises MemoryError."""
_START = 120
"""Longest time for a process to start, in seconds."""
_AHEAD = 4
"""Items a process holds: one in work, the others waiting, so that it never waits for the next."""
_WINDOW = 64
"""Results for each process that may wait for an earlier one."""
_SERVE = "import sys; sys.path[:] = {!r}; from numllm.workers import serve; serve({})"


class Lost:
    """The result of an item whose process died or was ended; `reason` says how."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def serve(handle: int) -> None:
    """What a process runs: takes the work, then items, from the connection and sends results until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends its children
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    connection = Connection(handle)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        work = connection.recv()
        connection.send(None)
        while True:
            item = connection.recv()
            try:
                answer = (True, work(item))
            except Exception as error:
                answer = (False, error)
            connection.send(answer)


class _Worker:
    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.connection, child = multiprocessing.Pipe()
        # Not multiprocessing.Process: it would run the caller's script again, and fork is unsafe beside threads.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE.format(sys.path, child.fileno())], pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )
        child.close()
        self.items: deque[tuple[int, Any]] = deque()
        self.ready = False
        self.since = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # as in `give`
            self.connection.send(work)

    def give(self, number: int, item: Any) -> None:
        if not self.items:
            self.since = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: the next look at it says so
            self.connection.send(item)
        self.items.append((number, item))

    def end(self) -> int:
        """Ends the process; its exit code, negative for a signal."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class _Pool(Generic[Item, Result]):
    def __init__(self, work: Callable[[Item], Result], jobs: int, seconds: float) -> None:
        self.work, self.seconds = work, seconds
        self.workers = [_Worker(work) for _ in range(jobs)]
        self.done: dict[int, Result | Lost] = {}
        self.again: deque[tuple[int, Item]] = deque()
        """Items that waited behind one whose process died."""

    def busy(self) -> bool:
        return any(worker.items for worker in self.workers) or bool(self.again)

    def step(self) -> None:
        """Waits for results, or for an item's time to pass."""
        working = [worker for worker in self.workers if worker.items]
        left = min(worker.since for worker in working) + self.seconds - time.monotonic()
        ready = set(wait([worker.connection for worker in working], max(0.05, left)))
        now = time.monotonic()
        for worker in working:
            if worker.connection in ready:
                while self.receive(worker) and worker.items and worker.connection.poll():
                    pass
            elif now - worker.since >= (self.seconds if worker.ready else max(self.seconds, _START)):
                worker.end()
                if not worker.ready:
                    raise NumLLMError("a worker process did not start; try --jobs 1")
                self.replace(worker, f"took longer than {self.seconds:g} s and was stopped")

    def receive(self, worker: _Worker) -> bool:
        """Takes one message; whether the worker is still there."""
        try:
            answer = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            code = worker.process.wait()
            worker.end()
            if not worker.ready:
                raise NumLLMError(f"a worker process could not start (exit code {code}); try --jobs 1") from None
            killed = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self.replace(worker, f"the process that read it {killed}")
            return False
        worker.since = time.monotonic()
        if worker.ready:
            right, value = answer
            if not right:
                raise value
            self.done[worker.items.popleft()[0]] = value
        worker.ready = True
        return True

    def replace(self, worker: _Worker, reason: str) -> None:
        number, _ = worker.items.popleft()
        self.done[number] = Lost(reason)
        self.again.extend(worker.items)
        self.workers[self.workers.index(worker)] = _Worker(self.work)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()


def ordered(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int, *, apart: bool = True, seconds: float = SECONDS
) -> Iterator[Result | Lost]:
    """`map(work, items)` on `jobs` processes, in order; few results wait in memory.

    work is importable by name (or a `functools.partial` of such a function). An item whose process dies, or that
    takes longer than `seconds`, gives a `Lost` and the others go on; an exception of `work` is raised. Not `apart`,
    everything happens in this process, without that protection.
    """
    if not apart:
        yield from map(work, items)
        return
    pool: _Pool[Item, Result] = _Pool(work, jobs, seconds)
    source = enumerate(items)
    try:
        following, more, given = 0, True, 0
        while more or pool.busy() or pool.done:
            for worker in pool.workers:
                while len(worker.items) < _AHEAD and (pool.again or (more and given - following < _WINDOW * jobs)):
                    if pool.again:
                        worker.give(*pool.again.popleft())
                    elif (entry := next(source, None)) is not None:
                        worker.give(*entry)
                        given += 1
                    else:
                        more = False
            if following in pool.done:
                yield pool.done.pop(following)
                following += 1
            elif pool.busy():
                pool.step()
    finally:
        pool.close()
