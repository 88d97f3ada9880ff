"""Where work is done: in this process, in several on this machine, or on a Ray cluster. The work is the same."""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_connection
from queue import SimpleQueue
from typing import Any, TypeVar

EXECUTORS = ("local", "ray")

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDiedError(RuntimeError):
    """A process ended in the middle of its work."""


def keep_freed_memory() -> None:
    """Let the C library keep large blocks of memory that were freed, where it can be told to (glibc).

    Each step of training, or of acting in many games, frees and takes the same ones. By default they go back to the
    system, and taking them again is up to a fifth of a step of training on a CPU, and up to half of one of acting.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def map_unordered(
    function: Callable[[Item], Result], items: Iterable[Item], executor: str = "local", num_workers: int = 1
) -> Iterator[Result]:
    """Call a function on every item; yields the results as they come. Arguments as of `flat_map_unordered`."""
    return flat_map_unordered(partial(_one_result, function), items, executor, num_workers)


def _one_result(function: Callable[[Item], Result], item: Item) -> Iterator[Result]:
    yield function(item)


def flat_map_unordered(
    function: Callable[[Item], Iterator[Result]], items: Iterable[Item], executor: str = "local", num_workers: int = 1
) -> Iterator[Result]:
    """Call a generator function on every item; yields what each of the generators yields, as soon as it does.

    Args:
        function: can be pickled. On a cluster it is called again where a machine died with it.
        items: drawn as workers become free.
        executor: "local" for processes of this machine, "ray" for the cluster that `RAY_ADDRESS` names, or else a new
            one on this machine.
        num_workers: of "local". 1 is this process itself. A cluster uses all of its CPUs.

    Raises:
        WorkerDiedError: if a process did.
        ImportError: if Ray is not installed.
    """
    if executor == "ray":
        yield from _on_ray(function, items)
    elif num_workers == 1:
        for item in items:
            yield from function(item)
    else:
        yield from _in_processes(function, items, num_workers)


def check_executor(executor: str) -> None:
    """Refuse an executor that is unknown or not installed.

    Raises:
        ValueError: naming those that there are.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"unknown executor {executor!r}: expected one of {', '.join(EXECUTORS)}")
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError('the executor "ray" needs Ray: pip install "jat[ray]"')


def _in_processes(function: Callable, items: Iterable[Item], num_workers: int) -> Iterator[Any]:
    others = set(multiprocessing.active_children())
    # A fresh interpreter for each worker: MuJoCo's and the emulator's state must not be forked.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_begin_worker, initargs=(writer, context.Lock())
    )
    # What comes from the workers: results in tuples, and the futures of items whose results have all been sent.
    arrivals: SimpleQueue[tuple[Any] | Future[int]] = SimpleQueue()
    threading.Thread(target=_receive, args=(reader, arrivals), daemon=True).start()
    items = iter(items)

    def submit(number: int) -> int:
        """Hand on so many items, if there are; returns how many there were."""
        futures = [pool.submit(_send_results, function, item) for item in islice(items, number)]
        for future in futures:
            future.add_done_callback(arrivals.put)
        return len(futures)

    try:
        in_work, to_come = submit(2 * num_workers), 0
        while in_work or to_come:
            arrival = arrivals.get()
            if isinstance(arrival, Future):
                in_work -= 1
                to_come += arrival.result()
            else:
                to_come -= 1
                yield from arrival
            if to_come <= 0:  # all is here that finished items have sent
                in_work += submit(2 * num_workers - in_work)
    except BrokenProcessPool as error:
        raise WorkerDiedError(
            "a worker process died, perhaps for lack of memory; what was finished is kept: run the same command "
            "again, with fewer workers if it happens again"
        ) from error
    except BaseException:
        # Nobody waits for what is in work, which may take long; what was finished is on the disk.
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        writer.close()


def _receive(reader: Connection, arrivals: SimpleQueue) -> None:
    """Hand on what the workers send, until the last of them has ended."""
    with contextlib.suppress(EOFError):
        while True:
            arrivals.put((reader.recv(),))


_writer: Connection  # of a worker, where its results go, one worker's at a time
_writing: Any


def _begin_worker(writer: Connection, writing: Any) -> None:
    """Let a worker end with the process that started it, even if that was killed, and leave Ctrl-C to that process."""
    global _writer, _writing
    _writer, _writing = writer, writing
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait_for_connection([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _send_results(function: Callable[[Item], Iterator[Any]], item: Item) -> int:
    """Send what the function yields to the parent; returns how much that was."""
    number = 0
    for result in function(item):
        with _writing:
            _writer.send(result)
        number += 1
    return number


def _on_ray(function: Callable, items: Iterable[Item]) -> Iterator[Any]:
    import ray

    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(log_to_driver=False)
    try:
        # Retried for ever where a machine is lost, never where the function itself fails.
        @ray.remote(num_returns="streaming", max_retries=-1)
        def results_of(item: Item) -> Iterator[Any]:
            yield from function(item)

        items, running = iter(items), []
        ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while running := running + [results_of.remote(item) for item in islice(items, ahead - len(running))]:
            [ready], _ = ray.wait(running, num_returns=1)
            try:
                yield ray.get(next(ready))
            except StopIteration:
                running.remove(ready)
    finally:
        if begun_here:
            ray.shutdown()
