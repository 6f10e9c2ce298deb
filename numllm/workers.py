"""Work on several processes, in order, that outlives a process which crashes, hangs or runs out of memory."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from .collector import SELDOM
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
_SWITCH = 1e-4
"""Seconds that the thread which reads items waits for the one that works; the parent, which sends them, waits too."""
_WINDOW = 64
"""Results for each process that may wait for an earlier one."""
_SERVE = "import sys; sys.path[:] = {!r}; from numllm.workers import serve; serve({})"


class Lost:
    """The result of an item whose process died or was ended; `reason` says how."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def serve(handle: int) -> None:
    """What a process runs: takes (True, work) and (False, item), answers with None and the result, until the
    connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends its children
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    gc.set_threshold(SELDOM)
    sys.setswitchinterval(_SWITCH)
    connection = Connection(handle)
    taken: queue.SimpleQueue[tuple[bool, Any] | None] = queue.SimpleQueue()
    # read all the time: the parent, sending a large item to a process that sends a large result, would wait for ever
    threading.Thread(target=_take, args=(connection, taken), daemon=True).start()
    work: Callable[[Any], Any] | None = None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while (entry := taken.get()) is not None:
            is_work, value = entry
            if is_work:
                work = value
                connection.send(None)
                continue
            assert work is not None, "work comes before its items"
            try:
                answer = (True, work(value))
            except Exception as error:
                answer = (False, error)
            connection.send(answer)


def _take(connection: Connection, taken: queue.SimpleQueue[tuple[bool, Any] | None]) -> None:
    """Puts what is received into `taken`, None at the end."""
    try:
        while True:
            taken.put(connection.recv())
    except (EOFError, ConnectionResetError):
        taken.put(None)


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
        self.taking = 0
        """Kinds of work that it has been sent and has not answered."""
        self.set(work)

    @property
    def has_room(self) -> bool:
        """Whether it takes an item; one that starts would not read it, and this process wait for it to do so."""
        return not self.taking and len(self.items) < _AHEAD

    def set(self, work: Callable[[Any], Any]) -> None:
        self.taking += 1
        self.since = time.monotonic()
        self._send(True, work)

    def give(self, number: int, item: Any) -> None:
        if not self.items:
            self.since = time.monotonic()
        self._send(False, item)
        self.items.append((number, item))

    def _send(self, is_work: bool, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: the next look at it says so
            self.connection.send((is_work, value))

    def end(self) -> int:
        """Ends the process; its exit code, negative for a signal."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class Workers:
    """Processes that do one kind of work after another: items of each in order."""

    def __init__(self, jobs: int, *, seconds: float = SECONDS) -> None:
        self.jobs, self.seconds = jobs, seconds
        self.workers: list[_Worker] = []

    def ordered(
        self, work: Callable[[Item], Result], items: Iterable[Item], *, helping: bool = False
    ) -> Iterator[Result | Lost]:
        """`map(work, items)`, in order; few results wait in memory.

        work is importable by name (or a `functools.partial` of such a function). An item whose process dies, or that
        takes longer than `seconds`, gives a `Lost` and the others go on; an exception of `work` is raised. helping:
        this process works on items too, where it would wait for a result; what it works on is not guarded so.
        """
        self.workers = [worker for worker in self.workers if worker.process.poll() is None]
        for worker in self.workers:
            worker.set(work)
        self.workers += [_Worker(work) for _ in range(self.jobs - len(self.workers))]
        finished = False
        try:
            yield from _Pass(work, self.workers, self.seconds, helping).results(items)
            finished = True
        finally:
            if not finished:  # they hold items that nobody waits for
                self.close()

    def batched(
        self, work: Callable[[list[Item]], list[Result]], batches: Sequence[list[Item]]
    ) -> Iterator[Result | Lost]:
        """The results of `work(batch)` of each batch, item by item, in order: for items so small that a message for
        each takes as long as its work.

        The items of a batch that is lost are done again one by one, so that only the one at fault is lost.
        """
        for batch, results in zip(batches, self.ordered(work, batches), strict=True):
            if not isinstance(results, Lost):
                yield from results
            elif len(batch) == 1:
                yield results
            else:
                with contextlib.closing(Workers(1, seconds=self.seconds)) as apart:
                    yield from apart.batched(work, [[item] for item in batch])

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.end()
        self.workers = []


class _Pass(Generic[Item, Result]):
    """One kind of work, done by these workers."""

    def __init__(
        self, work: Callable[[Item], Result], workers: list[_Worker], seconds: float, helping: bool = False
    ) -> None:
        self.work, self.workers, self.seconds, self.helping = work, workers, seconds, helping
        self.done: dict[int, Result | Lost] = {}
        self.again: deque[tuple[int, Item]] = deque()
        """Items that waited behind one whose process died."""

    def results(self, items: Iterable[Item]) -> Iterator[Result | Lost]:
        source = enumerate(items)
        following, more, given = 0, True, 0
        while more or self.busy() or self.done:
            for worker in self.workers:
                while worker.has_room and (self.again or (more and given - following < self.window)):
                    if self.again:
                        worker.give(*self.again.popleft())
                    elif (entry := next(source, None)) is not None:
                        worker.give(*entry)
                        given += 1
                    else:
                        more = False
            if following in self.done:
                yield self.done.pop(following)
                following += 1
            elif self.helping and more and given - following < self.window:
                self.step(0)
                if following not in self.done:
                    entry = next(source, None)
                    more = entry is not None
                    if entry is not None:
                        self.done[entry[0]] = self.work(entry[1])
                        given += 1
            elif more or self.busy():
                self.step()

    @property
    def window(self) -> int:
        return _WINDOW * len(self.workers)

    def busy(self) -> bool:
        return any(worker.items for worker in self.workers) or bool(self.again)

    def step(self, longest: float | None = None) -> None:
        """Waits for results, `longest` seconds at most, or for an item's time to pass."""
        working = [worker for worker in self.workers if worker.taking or worker.items]
        if longest is None:
            longest = max(0.05, min(worker.since for worker in working) + self.seconds - time.monotonic())
        ready = set(wait([worker.connection for worker in working], longest))
        now = time.monotonic()
        for worker in working:
            if worker.connection in ready:
                while self.receive(worker) and worker.items and worker.connection.poll():
                    pass
            elif now - worker.since >= (max(self.seconds, _START) if worker.taking else self.seconds):
                worker.end()
                if worker.taking:
                    raise NumLLMError("a worker process did not start; try --jobs 1")
                self.replace(worker, f"took longer than {self.seconds:g} s and was stopped")

    def receive(self, worker: _Worker) -> bool:
        """Takes one message; whether the worker is still there."""
        try:
            answer = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            code = worker.process.wait()
            worker.end()
            if worker.taking:
                raise NumLLMError(f"a worker process could not start (exit code {code}); try --jobs 1") from None
            killed = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self.replace(worker, f"the process that read it {killed}")
            return False
        worker.since = time.monotonic()
        if worker.taking:
            worker.taking -= 1
            return True
        right, value = answer
        if not right:
            raise value
        self.done[worker.items.popleft()[0]] = value
        return True

    def replace(self, worker: _Worker, reason: str) -> None:
        number, _ = worker.items.popleft()
        self.done[number] = Lost(reason)
        self.again.extend(worker.items)
        self.workers[self.workers.index(worker)] = _Worker(self.work)
