"""The text subsets, from sources on a Hub on loopback and images of a server there that has every fault."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from conftest import wait_until
from datasets import load_dataset
from hub import running_hub
from PIL import Image

from dataset_builder import text
from dataset_builder.__main__ import main
from dataset_builder.text import DroppedError, ImageFetcher, is_public, shrink_image


def image_file(width, height, kind="PNG", mode="RGB", **options):
    rng = np.random.default_rng(width * height)
    image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class ImageServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("0.0.0.0", 0), _Handler)
        self.asked = []

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ImageServer

    def log_message(self, *args):
        pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        self.server.asked.append(self.path)
        times = self.server.asked.count(self.path)
        getattr(self, f"do_{kind}", self.do_missing)(rest, times)

    def do_missing(self, rest, times):
        self.answer(404, b"no")

    def do_image(self, rest, times):
        width, height = map(int, rest.split("x"))
        self.answer(200, image_file(width, height))

    def do_page(self, rest, times):
        self.answer(200, b"<html>this image has moved</html>", **{"Content-Type": "image/png"})

    def do_redirect(self, rest, times):
        self.answer(302, b"", Location=f"/{rest}")

    def do_elsewhere(self, rest, times):
        self.answer(301, b"", Location=self.server.url(rest, host="127.0.0.2"))

    def do_file(self, rest, times):
        self.answer(302, b"", Location="file:///etc/passwd")

    def do_loop(self, rest, times):
        self.answer(302, b"", Location=f"/loop/{times}")

    def do_busy(self, rest, times):
        """Fails the first two times."""
        if times < 3:
            self.answer(503, b"")
        else:
            self.do_image("20x10", times)

    def do_broken(self, rest, times):
        """Promises more than it sends."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"\x89PNG")
        self.close_connection = True

    def do_slow(self, rest, times):
        """Sends a byte now and then, of its header or of its body, faster than any timeout of a read."""
        try:
            if rest == "body":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
            else:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            for _ in range(300):
                self.wfile.write(b"a")
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            self.close_connection = True

    def do_huge(self, rest, times):
        """Never ends."""
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(65536))
        except OSError:
            self.close_connection = True


@pytest.fixture(scope="module")
def images():
    with ImageServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def fetcher():
    return ImageFetcher(timeout=1.0, retries=2, max_bytes=1_000_000, allow_local=True)


class TestFetching:
    @pytest.mark.parametrize("path", ["image/30x20", "redirect/image/30x20", "redirect/redirect/image/30x20"])
    def test_an_image(self, images, fetcher, path):
        assert fetcher.fetch(images.url(path)) == image_file(30, 20)

    def test_a_server_that_is_busy_is_asked_again(self, images, fetcher):
        assert fetcher.fetch(images.url("busy/1")) == image_file(20, 10)

    @pytest.mark.parametrize(
        ("path", "reason", "attempts"),
        [
            ("missing", "HTTP 404", 1),
            ("broken", "connection failed", 3),
            ("huge", "too large", 1),
            ("slow/body", "timeout", 3),
            ("slow/header", "timeout", 3),
            ("file", "neither http nor https", 1),
        ],
    )
    def test_what_is_dropped(self, images, fetcher, path, reason, attempts):
        begun = time.monotonic()
        with pytest.raises(DroppedError, match=reason):
            fetcher.fetch(images.url(path))
        assert images.asked.count(f"/{path}") == attempts
        assert time.monotonic() - begun < 12  # three attempts of a second, and waits; the server would take 90

    def test_a_loop(self, images, fetcher):
        with pytest.raises(DroppedError, match="too many redirects"):
            fetcher.fetch(images.url("loop"))

    @pytest.mark.parametrize(
        "url", ["ftp://example.org/a.png", "file:///etc/passwd", "a.png", "", "http://", "http://[::1", "http://a b/"]
    )
    def test_what_is_no_address(self, fetcher, url):
        with pytest.raises(DroppedError, match=r"neither http nor https|not an address|unknown host|connection failed"):
            fetcher.fetch(url)

    def test_a_host_that_does_not_exist(self, fetcher):
        with pytest.raises(DroppedError, match="unknown host"):
            fetcher.fetch("http://nowhere.invalid/a.png")

    def test_a_port_where_nobody_listens(self, fetcher):
        with pytest.raises(DroppedError, match="connection failed"):
            fetcher.fetch("http://127.0.0.1:9/a.png")

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433"])
    def test_local_addresses_are_not_asked(self, images, host):
        asked = len(images.asked)
        with pytest.raises(DroppedError, match="local address"):
            ImageFetcher(timeout=1.0).fetch(images.url("image/9x9", host=host))
        assert len(images.asked) == asked

    def test_redirects_to_local_addresses_are_not_followed(self, images, monkeypatch):
        """As if 127.0.0.1 was out there and 127.0.0.2 was not."""
        monkeypatch.setattr(text, "is_public", lambda address: address == "127.0.0.1")
        fetcher = ImageFetcher(timeout=1.0)
        assert fetcher.fetch(images.url("redirect/image/9x9"))
        with pytest.raises(DroppedError, match="local address"):
            fetcher.fetch(images.url("elsewhere/image/9x8"))
        assert "/image/9x8" not in images.asked

    @pytest.mark.parametrize(
        ("address", "public"),
        [
            ("8.8.8.8", True),
            ("2606:4700::1111", True),
            ("10.0.0.1", False),
            ("172.16.3.4", False),
            ("192.168.1.1", False),
            ("169.254.169.254", False),
            ("100.64.0.1", False),
            ("fd00::1", False),
            ("fe80::1%eth0", False),
            ("::ffff:10.0.0.1", False),
        ],
    )
    def test_public_addresses(self, address, public):
        assert is_public(address) == public


class TestImages:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [((1000, 500), (352, 176)), ((10, 704), (5, 352)), ((352, 352), (352, 352)), ((20, 10), (20, 10))],
    )
    @pytest.mark.parametrize(
        ("kind", "mode"), [("PNG", "RGB"), ("PNG", "P"), ("JPEG", "L"), ("GIF", "P"), ("WEBP", "RGB")]
    )
    def test_the_longest_side(self, size, expected, kind, mode):
        image = Image.open(io.BytesIO(shrink_image(image_file(*size, kind=kind, mode=mode))))
        assert (image.size, image.mode, image.format) == (expected, "RGB", "JPEG")

    def test_metadata_are_gone_and_the_image_stands_upright(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        exif[0x010E] = "where I live"
        shrunk = Image.open(io.BytesIO(shrink_image(image_file(40, 20, "JPEG", exif=exif))))
        assert shrunk.size == (20, 40)
        assert not dict(shrunk.getexif())

    @pytest.mark.parametrize("file", [b"", b"<html>", image_file(30, 20)[:100], image_file(64, 64, "JPEG")[:300]])
    def test_what_is_no_image(self, file):
        with pytest.raises(DroppedError, match="not an image"):
            shrink_image(file)

    def test_an_image_that_would_fill_the_memory(self):
        file = io.BytesIO()
        Image.new("1", (30_000, 30_000)).save(file, "PNG")
        assert len(file.getvalue()) < 200_000
        with pytest.raises(DroppedError, match=r"too large|not an image"):
            shrink_image(file.getvalue())


def parquet(rows):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def hub(images):
    """The four sources, in the form that they have."""
    with running_hub() as server:
        config = "configs:\n- config_name: {0}\n  data_files:\n  - split: train\n    path: {0}/*.parquet\n"
        wikipedia = [{"id": str(i), "url": "", "title": "", "text": f"article {i}" * (i != 7)} for i in range(300)]
        server.add(
            "datasets",
            "wikimedia/wikipedia",
            {
                "README.md": f"---\n{config.format('20231101.en')}---\n".encode(),
                "20231101.en/train-00000-of-00002.parquet": parquet(wikipedia[:200]),
                "20231101.en/train-00001-of-00002.parquet": parquet(wikipedia[200:]),
            },
        )
        lines = [json.dumps({"id": i, "content": f"page {i}", "metadata": {}}) + "\n" for i in range(30)]
        packed = zstandard.compress("".join(lines).encode())
        server.add(
            "datasets",
            "oscar-corpus/OSCAR-2301",
            {"OSCAR-2301.py": b"raise SystemExit", "en_meta/en_meta_part_1.jsonl.zst": packed},
        )
        pictures = [
            {
                "image": {"bytes": image_file(400 + i, 300, "JPEG"), "path": f"{i}.jpg"},
                "question": f"What is number {i}?",
                "answers": [f"answer {i}", "another"],
            }
            for i in range(12)
        ]
        schema = pa.Table.from_pylist(pictures).schema.with_metadata(
            {"huggingface": json.dumps({"info": {"features": {
                "image": {"_type": "Image"},
                "question": {"dtype": "string", "_type": "Value"},
                "answers": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
            }}})}
        )  # fmt: skip
        file = io.BytesIO()
        pyarrow.parquet.write_table(pa.Table.from_pylist(pictures, schema=schema), file)
        server.add("datasets", "Multimodal-Fatima/OK-VQA_train", {"data/train-00000-of-00001.parquet": file.getvalue()})
        paths = ["image/500x100", "missing", "image/10x10", "page", "redirect/image/30x40", "missing/2", "busy/2"]
        captions = [{"image_url": images.url(path), "caption": f"a picture of {path}"} for path in paths]
        captions += [{"image_url": images.url(f"image/{20 + i}x10"), "caption": f"number {i}"} for i in range(30)]
        server.add(
            "datasets",
            "google-research-datasets/conceptual_captions",
            {
                "README.md": f"---\n{config.format('unlabeled')}---\n".encode(),
                "unlabeled/train-00000-of-00001.parquet": parquet(captions),
            },
        )
        yield server


def build(hub, home, *arguments):
    """The command line, in a process that knows the Hub on loopback alone."""
    command = [sys.executable, "-m", "dataset_builder", "build", *map(str, arguments)]
    environment = {**os.environ, **hub.environment(home)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def rows(folder, task, split="train"):
    return list(load_dataset(str(folder), task, split=split))


@pytest.fixture(scope="module")
def built(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "data"
    home = tmp_path_factory.mktemp("home")
    build(hub, home, "--tasks", "text", "--episodes", 12, "--output", folder, "--allow-local")
    return folder


class TestSubsets:
    def test_wikipedia(self, built):
        """The article without a text is left out; every tenth row is a test row."""
        expected = [f"article {i}" for i in range(13) if i != 7]
        assert [row["text"] for row in rows(built, "wikipedia", "test")] == [expected.pop(9)]
        assert [row["text"] for row in rows(built, "wikipedia")] == expected
        assert json.loads((built / "wikipedia" / "manifest.json").read_text())["dropped"] == {"no text": 1}

    def test_oscar(self, built):
        assert [row["text"] for row in rows(built, "oscar")][:3] == ["page 0", "page 1", "page 2"]

    def test_ok_vqa(self, built):
        row = rows(built, "ok-vqa")[3]
        assert list(row) == ["images", "text"]
        assert row["text"] == "Q: What is number 3? A: answer 3"
        assert row["images"].size == (352, 262)

    def test_conceptual_captions(self, built):
        """Whatever cannot be had is dropped and counted; the order is that of the source."""
        found = {row["text"]: row["images"].size for row in rows(built, "conceptual-captions")}
        assert list(found)[:5] == [
            "a picture of image/500x100",
            "a picture of image/10x10",
            "a picture of redirect/image/30x40",
            "a picture of busy/2",
            "number 0",
        ]
        assert list(found.values())[:3] == [(352, 70), (10, 10), (30, 40)]
        manifest = json.loads((built / "conceptual-captions" / "manifest.json").read_text())
        assert manifest["dropped"] == {"HTTP 404": 2, "not an image": 1}

    def test_card_and_verify(self, built, capsys):
        card = (built / "README.md").read_text()
        assert "| conceptual-captions | [google-research-datasets/conceptual_captions]" in card
        assert "| 12 | HTTP 404: 2, not an image: 1 |" in card
        assert main(["verify", str(built)]) == 0
        assert "4 tasks verified: 0 faults" in capsys.readouterr().out

    def test_more_rows_extend_it_without_a_change_of_its_files(self, hub, built, tmp_path):
        before = {path.read_bytes() for path in built.rglob("*.parquet")}
        build(
            hub,
            tmp_path,
            "--tasks",
            "wikipedia",
            "conceptual-captions",
            "--episodes",
            25,
            "--output",
            built,
            "--allow-local",
        )
        assert before < {path.read_bytes() for path in built.rglob("*.parquet")}
        assert len(rows(built, "wikipedia")) == 23
        whole = tmp_path / "whole"
        build(
            hub,
            tmp_path,
            "--tasks",
            "wikipedia",
            "conceptual-captions",
            "--episodes",
            25,
            "--output",
            whole,
            "--allow-local",
        )
        for task in ("wikipedia", "conceptual-captions"):
            for split in ("train", "test"):
                assert rows(built, task, split) == rows(whole, task, split)

    def test_a_source_that_ends(self, hub, tmp_path):
        build(hub, tmp_path, "--tasks", "ok-vqa", "--episodes", 1000, "--output", tmp_path / "data")
        assert json.loads((tmp_path / "data" / "ok-vqa" / "manifest.json").read_text())["rows"] == 12

    def test_local_images_need_leave(self, hub, tmp_path):
        """Nothing is kept, and nothing is written."""
        command = ["--tasks", "conceptual-captions", "--episodes", 5, "--output", tmp_path / "data"]
        with pytest.raises(AssertionError, match="no row of conceptual-captions could be had: local address: 37"):
            build(hub, tmp_path, *command)

    def test_through_the_builder_of_datasets(self, hub, tmp_path):
        code = """
from dataset_builder.builder import JatDataset
builder = JatDataset(config_name="wikipedia", episodes=12)
print([row["text"] for row in builder.as_streaming_dataset("train")])
"""
        environment = {**os.environ, **hub.environment(tmp_path)}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert result.stdout.startswith("['article 0', 'article 1'"), result.stderr


CHUNKS = """
import sys
from dataset_builder import text
from dataset_builder.builder import build
text.ROWS_PER_CHUNK = text.IMAGE_ROWS_PER_CHUNK = 10
text.EXAMPLES_PER_BATCH = 7
if sys.argv[3] == "slowly":
    import time
    original = text._write_chunk
    text._write_chunk = lambda *args: (original(*args), time.sleep(0.5))
build(sys.argv[1], sys.argv[2], episodes=35, allow_local=True, progress=False)
"""


@pytest.mark.parametrize("task", ["wikipedia", "conceptual-captions"])
def test_a_killed_build_goes_on(hub, tmp_path, task):
    """Behind the last chunk; the result is the same."""
    environment = {**os.environ, **hub.environment(tmp_path)}

    def command(folder, pace):
        return [sys.executable, "-c", CHUNKS, task, str(tmp_path / folder), pace]

    process = subprocess.Popen(command("killed", "slowly"), env=environment)
    wait_until(lambda: list((tmp_path / "killed").glob("*/train-from-00000010*")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = next((tmp_path / "killed").glob("*/train-from-00000000*")).stat().st_ino
    subprocess.run(command("killed", "fast"), env=environment, check=True)
    subprocess.run(command("undisturbed", "fast"), env=environment, check=True)
    assert first in {path.stat().st_ino for path in (tmp_path / "killed").rglob("*.parquet")}
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / folder / task).iterdir()}
        for folder in ("killed", "undisturbed")
    ]
    assert files[0] == files[1]
