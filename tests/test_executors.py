"""The same work in processes, on a Ray cluster that loses a machine, and to a folder on another machine."""

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import pytest
from conftest import TASKS, wait_until
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer
from test_builder import digest, finished_episodes

from dataset_builder.builder import build
from dataset_builder.executors import WorkerDiedError, flat_map_unordered, map_unordered

REACH, BALL, PENDULUM, PONG = TASKS


def square(number):
    return number**2


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number):
    raise ValueError(f"no {number}")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results(num_workers):
    assert sorted(map_unordered(square, range(20), num_workers=num_workers)) == [n**2 for n in range(20)]


def count_slowly(number):
    for n in range(number):
        time.sleep(0.05)
        yield number, n


@pytest.mark.parametrize(("executor", "num_workers"), [("local", 1), ("local", 2), ("ray", 0)])
def test_results_come_before_their_item_is_finished(executor, num_workers, monkeypatch):
    if executor == "ray":
        pytest.importorskip("ray")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    results = flat_map_unordered(count_slowly, [0, 20, 3], executor, num_workers)
    begun = next(results)
    first = time.monotonic()
    assert sorted([begun, *results]) == sorted((number, n) for number in (20, 3) for n in range(number))
    assert time.monotonic() - first > 0.5


@pytest.mark.parametrize("num_workers", [1, 2])
def test_items_are_drawn_as_they_are_needed(num_workers):
    """However many there are, few wait."""
    numbers = count()
    results = map_unordered(square, numbers, num_workers=num_workers)
    assert next(results) in (0, 1, 4, 9)
    assert next(numbers) < 10
    results.close()


def test_an_error_of_a_worker():
    with pytest.raises(ValueError, match="no 3"):
        list(map_unordered(fail, [3], num_workers=2))


def test_a_worker_that_is_killed():
    with pytest.raises(WorkerDiedError, match="run the same command again"):
        list(map_unordered(die, [1], num_workers=2))


@pytest.fixture
def store(tmp_path):
    """A folder on another machine: the server's folder, and its address."""
    folder = tmp_path / "store"
    folder.mkdir()
    authorizer = DummyAuthorizer()
    authorizer.add_anonymous(str(folder), perm="elradfmwMT")
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
    with ThreadedFTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"ftp://127.0.0.1:{server.address[1]}/data"


def test_a_folder_that_is_not_on_this_machine(store, tmp_path):
    """Built and extended there through fsspec, the files are the same."""
    folder, url = store
    for episodes in ("12", "25"):
        command = [sys.executable, "-m", "dataset_builder", "build", "--tasks", BALL, "--episodes", episodes]
        output = subprocess.check_output([*command, "--num-workers", "2", "--output", url], text=True)
        build(BALL, tmp_path / "local", episodes=int(episodes), progress=False)
    assert 'load_dataset("parquet", data_files="ftp://' in output
    found, expected = digest(folder / "data"), digest(tmp_path / "local")
    pictures = {name for name in expected if name.startswith("assets")}
    assert set(found) == set(expected) - pictures
    assert all(found[name] == expected[name] for name in found if name != "README.md")


@pytest.mark.slow
def test_a_cluster_that_loses_a_machine(tmp_path, monkeypatch):
    """Two machines with a worker each; one is cut off in the middle of the build, which ends as if it had not been."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        output = tmp_path / "cluster"
        command = [sys.executable, "-m", "dataset_builder", "build", "--executor", "ray", "--output", str(output)]
        process = subprocess.Popen(
            [*command, "--tasks", REACH, BALL, "--episodes", "60"],
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: len(finished_episodes(output)) >= 20, process)
        cluster.remove_node(lost, allow_graceful=False)
        assert len(finished_episodes(output)) < 120
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    finally:
        cluster.shutdown()
    local = build([REACH, BALL], tmp_path / "local", episodes=60, num_workers=2, progress=False)
    assert digest(output) == digest(local)
