"""Work on all cores: reading, arithmetic and writing of different tensors overlap."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..files import Progress


class Pool:
    """Runs tasks on all cores, one thread of torch each; the first error stops the rest."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self.threads = torch.get_num_threads()

    def __enter__(self) -> Pool:
        self._executor, self._waiting = (
            concurrent.futures.ThreadPoolExecutor(threads, name, initializer=torch.set_num_threads, initargs=(1,))
            for threads, name in ((self.threads, "numllm-merge"), (1, "numllm-merge-waiting"))
        )
        self._beside: list[concurrent.futures.Future[Any]] = []
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        torch.set_num_threads(self.threads)  # what a thread sets is also the setting of threads yet to come

    def _stop(self) -> None:
        self._stopped.set()
        for executor in (self._executor, self._waiting):
            executor.shutdown(wait=True, cancel_futures=True)

    def wait_beside(self, task: Callable[[], Any]) -> None:
        """Starts a task that waits more than it works, on a thread besides those of the cores; `run` ends after it."""
        self._beside.append(self._waiting.submit(task))

    def submit(self, task: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Starts a task; its future."""
        return self._executor.submit(task)

    def run(self, tasks: Sequence[Callable[[], Any]], progress: Progress, description: str) -> list[Any]:
        """The tasks' results, in their order. The first error is raised when no task runs any more, so that
        files can be closed then.
        """
        results: list[Any] = [None] * len(tasks)
        left, done = iter(enumerate(tasks)), queue.SimpleQueue[BaseException | None]()

        def work() -> None:  # a future for every task would cost more than many of the tasks
            for place, task in left:
                try:
                    self.check()
                    results[place] = task()
                except BaseException as error:
                    done.put(error)
                    return
                done.put(None)

        def finished() -> Iterator[None]:
            for _ in tasks:
                error = done.get()
                if error is not None:
                    raise error
                yield

        for _ in range(self.threads):
            self.submit(work)
        try:
            for _ in progress(finished(), total=len(tasks), description=description, unit="part"):
                pass
            for future in self._beside:
                future.result()
        except BaseException:
            self._stop()
            raise
        return results

    def check(self) -> None:
        """Ends the task that calls it when its work is no longer wanted."""
        if self._stopped.is_set():
            raise concurrent.futures.CancelledError
