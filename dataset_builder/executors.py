"""Where work is done: in this process, in several on this machine, or on a Ray cluster. The work is the same."""

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_connection
from typing import Any, TypeVar

EXECUTORS = ("local", "ray")

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDiedError(RuntimeError):
    """A process ended in the middle of its work."""


def map_unordered(
    function: Callable[[Item], Result], items: Iterable[Item], executor: str = "local", num_workers: int = 1
) -> Iterator[Result]:
    """Call a function on every item; yields the results as they come.

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
        yield from map(function, items)
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


def _as_completed(items: Iterable[Item], submit: Callable[[Item], Future], ahead: int) -> Iterator[Any]:
    """Results in the order in which they come, with at most `ahead` items waiting or in work."""
    pending: set[Future] = set()
    for item in items:
        pending.add(submit(item))
        if len(pending) >= ahead:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def _in_processes(function: Callable, items: Iterable[Item], num_workers: int) -> Iterator[Any]:
    others = set(multiprocessing.active_children())
    # A fresh interpreter for each worker: MuJoCo's and the emulator's state must not be forked.
    pool = ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_die_with_parent
    )
    try:
        yield from _as_completed(items, lambda item: pool.submit(function, item), ahead=2 * num_workers)
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


def _die_with_parent() -> None:
    """Let a worker end with the process that started it, even if that was killed, and leave Ctrl-C to that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait_for_connection([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_ray(function: Callable, items: Iterable[Item]) -> Iterator[Any]:
    import ray

    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(log_to_driver=False)
    try:
        # Retried for ever where a machine is lost, never where the function itself fails.
        remote = ray.remote(max_retries=-1)(function)
        ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield from _as_completed(items, lambda item: remote.remote(item).future(), ahead)
    finally:
        if begun_here:
            ray.shutdown()
