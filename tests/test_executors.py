"""The same work in processes, on a Ray cluster that loses a machine, and to a store that is no file system."""

import os
import signal
import subprocess
import sys
import time
from itertools import count

import pytest
from conftest import TASKS
from test_builder import digest, finished_episodes

from dataset_builder.builder import build
from dataset_builder.executors import map_unordered

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
    with pytest.raises(RuntimeError, match="run the same command again"):
        list(map_unordered(die, [1], num_workers=2))


@pytest.fixture(scope="module")
def bucket():
    """An S3 store on loopback; its clients find it by the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "loopback")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        import s3fs

        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.mkdir("jat")
        yield store
    server.stop()


class TestObjectStore:
    def run(self, *options):
        command = [sys.executable, "-m", "dataset_builder", "build", "--output", "s3://jat/data", "--tasks", BALL]
        return subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout

    def test_built_extended_and_loaded(self, bucket, tmp_path):
        self.run("--episodes", "12", "--num-workers", "2")
        output = self.run("--episodes", "25", "--num-workers", "2")
        assert 'load_dataset("parquet", data_files="s3://jat/data/' in output
        local = build(BALL, tmp_path / "local", episodes=12, progress=False)
        build(BALL, local, episodes=25, progress=False)
        names = {path.removeprefix("jat/data/") for path in bucket.find("jat/data")}
        assert names == {name for name in digest(local) if not name.startswith("assets")}
        for path in (local / BALL).iterdir():
            assert bucket.cat(f"jat/data/{BALL}/{path.name}") == path.read_bytes()
        files = f"s3://jat/data/{BALL}/train-*.parquet"
        code = f"import datasets; print(len(datasets.load_dataset('parquet', data_files='{files}', split='train')))"
        online = {**os.environ, "HF_HUB_OFFLINE": "0"}
        loaded = subprocess.run([sys.executable, "-c", code], env=online, capture_output=True, text=True)
        assert loaded.stdout == "23\n", loaded.stderr


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
        deadline = time.monotonic() + 120
        while len(finished_episodes(output)) < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)
        assert len(finished_episodes(output)) < 120
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    finally:
        cluster.shutdown()
    local = build([REACH, BALL], tmp_path / "local", episodes=60, num_workers=2, progress=False)
    assert digest(output) == digest(local)
