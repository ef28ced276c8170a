"""Work on many modules: a thread a core, each with one thread of torch's own.

Linear algebra of adapters is many small products, which a core each does faster than all cores
together; and its last bits do not depend on how many cores there are.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Final, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD: Final = 2  # results a thread that may wait to be taken
_KEEP: Final = {-3: 32 * 2**20, -1: 128 * 2**20}  # glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch works with one thread, here as in :func:`ahead`: the same last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """``function`` of every item in order, computed a few items ahead.

    Args:
        function: Thread-safe.
        items: What for.
        threads: At work at once; as many as there are cores for this process by default.
    """
    _keep_memory()
    threads = threads or len(os.sched_getaffinity(0))
    before = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


@cache
def _keep_memory() -> None:
    """Lets glibc keep freed memory for the next module: new pages cost more than most work.

    Other C libraries have no such setting.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for setting, size in _KEEP.items():
            libc.mallopt(setting, size)
