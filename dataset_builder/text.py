"""The text subsets: wikipedia, oscar, ok-vqa and conceptual-captions, streamed from their sources on the Hub.

A row has a `text`, and for the last two an image in `images`: JPEG, its longest side at most 352 pixels, as published.
conceptual-captions holds only the addresses of its images. Those that cannot be had, or are no images, are dropped with
their captions and counted; which they are changes with time, so this subset alone is not the same each time.

Rows are written in chunks, each with the place in the source where the next one begins: a build that was interrupted
goes on behind its last chunk.
"""

import io
import ipaddress
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore2
import pyarrow as pa
from datasets import Image, IterableDataset, load_dataset
from PIL import Image as PILImage
from PIL import ImageOps
from tqdm import tqdm

from .episodes import row_schema
from .shards import Recipe, find_shards, origin, split_of, unnamed_shard, write_shard
from .tasks import TaskSpec, register_task

LONGEST_SIDE = 352  # pixels, as published
ROWS_PER_CHUNK = 10_000
IMAGE_ROWS_PER_CHUNK = 1_000
EXAMPLES_PER_BATCH, THREADS = 256, 32  # are read, and their images fetched, together


class DroppedError(Exception):
    """A row cannot be made; the message is a reason that many rows may share."""


@dataclass(frozen=True)
class Source:
    """Where a subset comes from.

    Args:
        open: makes a stream of its examples.
        text: the text of an example.
        image: the column of its image, or of the image's address.
    """

    open: Callable[[], IterableDataset]
    text: Callable[[dict[str, Any]], str]
    image: str | None = None

    def stream(self) -> IterableDataset:
        stream = self.open()
        if self.image and isinstance((stream.features or {}).get(self.image), Image):
            stream = stream.cast_column(self.image, Image(decode=False))
        return stream


def _question_and_answer(example: dict[str, Any]) -> str:
    return f"Q: {example['question']} A: {example['answers'][0]}"


def _on_hub(*args: str, **kwargs: str) -> Callable[[], IterableDataset]:
    return partial(load_dataset, *args, **kwargs, split="train", streaming=True)


SOURCES = {
    "wikipedia": Source(_on_hub("wikimedia/wikipedia", "20231101.en"), itemgetter("text")),
    # Its repository has a loading script, which nobody runs any more, and the files that the script read.
    "oscar": Source(
        _on_hub("json", data_files="hf://datasets/oscar-corpus/OSCAR-2301/en_meta/*.jsonl.zst"), itemgetter("content")
    ),
    "ok-vqa": Source(_on_hub("Multimodal-Fatima/OK-VQA_train"), _question_and_answer, image="image"),
    "conceptual-captions": Source(
        _on_hub("google-research-datasets/conceptual_captions", "unlabeled"), itemgetter("caption"), image="image_url"
    ),
}


def register_text(name: str, source: Source) -> TaskSpec:
    """Add a text subset of your own; it is then built, verified, published and trained on like the others.

    Raises:
        ValueError: if the name is taken or not fit for a folder.
    """
    columns = ("images", "text") if source.image else ("text",)
    where = getattr(source.open, "__module__", "")
    task = register_task(TaskSpec(name=name, domain="text", env_id=where, instruction="", columns=columns))
    SOURCES[name] = source
    return task


class _GuardedBackend(httpcore2.NetworkBackend):
    """Connects to public addresses only, and until a deadline.

    The address that is checked is the one that is connected to: a name that is resolved anew cannot lead elsewhere.
    """

    def __init__(self, deadline: float, allow_local: bool) -> None:
        self.deadline, self.allow_local = deadline, allow_local
        self.backend = httpcore2.SyncBackend()

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **kwargs: Any) -> httpcore2.NetworkStream:
        try:
            addresses = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except OSError as error:
            raise DroppedError("unknown host") from error
        if not self.allow_local and not all(is_public(address) for address in addresses):
            raise DroppedError("local address")
        stream = self.backend.connect_tcp(
            sorted(addresses)[0], port, timeout=_remaining(self.deadline, timeout), **kwargs
        )
        return _GuardedStream(stream, self.deadline)


class _GuardedStream(httpcore2.NetworkStream):
    """A connection on which no server can dawdle beyond the deadline."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, timeout=_remaining(self.deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, timeout=_remaining(self.deadline, timeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        secure = self.stream.start_tls(ssl_context, server_hostname, timeout=_remaining(self.deadline, timeout))
        return _GuardedStream(secure, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _remaining(deadline: float, timeout: float | None) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise httpcore2.ReadTimeout("the deadline has passed")
    return remaining if timeout is None else min(timeout, remaining)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, rather than of this machine or its network."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_global


@dataclass(frozen=True, kw_only=True)
class ImageFetcher:
    """Fetches images from addresses that anyone may have written.

    Args:
        timeout: seconds for an attempt, redirects included.
        retries: further attempts where the server or the connection fails.
        max_bytes: size of a file.
        max_redirects: that are followed.
        allow_local: whether addresses of this machine and its network may be asked.
    """

    timeout: float = 10.0
    retries: int = 2
    max_bytes: int = 20_000_000
    max_redirects: int = 5
    allow_local: bool = False
    ssl_context: ssl.SSLContext = field(default_factory=httpcore2.default_ssl_context)

    def fetch(self, url: str) -> bytes:
        """The file at an address.

        Raises:
            DroppedError: if it cannot be had.
        """
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(0.25 * 2**attempt)
            try:
                return self._attempt(url)
            except _TryAgain as error:
                reason = str(error)
        raise DroppedError(reason)

    def _attempt(self, url: str) -> bytes:
        deadline = time.monotonic() + self.timeout
        for _ in range(self.max_redirects + 1):
            try:
                parts = urlsplit(url)
                if parts.scheme not in ("http", "https") or not parts.hostname:
                    raise DroppedError("neither http nor https")
                target = self._request(url, deadline)
            except httpcore2.TimeoutException as error:
                raise _TryAgain("timeout") from error
            except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
                raise _TryAgain("connection failed") from error
            except (UnicodeError, ValueError) as error:
                raise DroppedError("not an address") from error
            if isinstance(target, bytes):
                return target
            url = urljoin(url, target)
        raise DroppedError("too many redirects")

    def _request(self, url: str, deadline: float) -> bytes | str:
        """The content, or where to look for it."""
        backend = _GuardedBackend(deadline, self.allow_local)
        with (
            httpcore2.ConnectionPool(self.ssl_context, network_backend=backend) as pool,
            pool.stream("GET", url, headers={"User-Agent": "jat-dataset-builder", "Accept": "image/*"}) as response,
        ):
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                return headers[b"location"].decode("latin-1")
            if response.status == 429 or response.status >= 500:
                raise _TryAgain(f"HTTP {response.status}")
            if response.status != 200:
                raise DroppedError(f"HTTP {response.status}")
            content = bytearray()
            for piece in response.iter_stream():
                content += piece
                if len(content) > self.max_bytes:
                    raise DroppedError("too large")
            return bytes(content)


class _TryAgain(Exception):
    """An attempt failed in a way that another may not; the message is the reason."""


def shrink_image(file: bytes) -> bytes:
    """An image file as JPEG without metadata, its longest side at most `LONGEST_SIDE` pixels.

    Raises:
        DroppedError: if it is no image.
    """
    try:
        with PILImage.open(io.BytesIO(file)) as image:
            if image.width * image.height > PILImage.MAX_IMAGE_PIXELS:
                raise DroppedError("too large")
            image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))  # JPEG can be read at half its size and less
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        shrunk = io.BytesIO()
        small.save(shrunk, "JPEG", quality=90)
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise DroppedError("not an image") from error
    return shrunk.getvalue()


class TextStream:
    """The rows of a subset, and where in its source they end.

    Args:
        task: the subset.
        fetcher: of images that are addresses in the source.
        rows: how many; fewer if the source ends before.
        place: where to begin, as `place` said before; the beginning of the source by default.
    """

    def __init__(self, task: TaskSpec, fetcher: ImageFetcher, rows: int, place: dict[str, Any] | None = None) -> None:
        self.source, self.fetcher, self.missing = SOURCES[task.name], fetcher, rows
        self.place = place or {"state": None, "skip": 0}
        self.dropped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = self.source.stream()
        if self.place["state"]:
            stream.load_state_dict(self.place["state"])
        examples = iter(stream)
        skip = self.place["skip"]
        with ThreadPoolExecutor(THREADS) as threads:
            while self.missing and (batch := list(islice(examples, self._batch_size(skip)))):
                rows = threads.map(self._row, batch[skip:])
                for number, row in enumerate(rows, start=skip + 1):
                    at_end = number == len(batch)
                    self.place = {"state": stream.state_dict(), "skip": 0} if at_end else self.place | {"skip": number}
                    if isinstance(row, DroppedError):
                        self.dropped[str(row)] += 1
                    else:
                        self.missing -= 1
                        yield row
                        if not self.missing:
                            return
                skip = 0

    def _batch_size(self, skip: int) -> int:
        """No more than are missing, as making them may be dear, but at least one for each thread."""
        return min(max(skip + self.missing, THREADS), EXAMPLES_PER_BATCH)

    def _row(self, example: dict[str, Any]) -> dict[str, Any] | DroppedError:
        try:
            text = self.source.text(example)
            if not text:
                raise DroppedError("no text")
            if self.source.image is None:
                return {"text": text}
            image = example[self.source.image]
            file = self.fetcher.fetch(image) if isinstance(image, str) else (image or {}).get("bytes")
            if file is None:
                raise DroppedError("no image")
            return {"images": {"bytes": shrink_image(file), "path": None}, "text": text}
        except DroppedError as reason:
            return reason


def text_rows(task: TaskSpec, rows: int, allow_local: bool = False) -> Iterator[dict[str, Any]]:
    """The first rows of a subset that can be had."""
    return iter(TextStream(task, ImageFetcher(allow_local=allow_local), rows))


def build_text(
    task: TaskSpec, recipe: Recipe, folder: Path, rows: int, progress: bool = True, allow_local: bool = False
) -> None:
    """Write the first rows of a subset as shards, or go on behind the last chunk of them.

    Args:
        task: the subset.
        recipe: what the shards say of their making.
        folder: of the subset.
        rows: how many, test rows included; fewer if the source ends before.
        progress: show a bar.
        allow_local: whether images may come from addresses of this machine and its network.

    Raises:
        ValueError: if no row can be had.
    """
    first, place = 0, None
    for footer in find_shards(folder).values():
        if footer["last_index"] + 1 > first:
            first, place = footer["last_index"] + 1, footer["place"]
    size = IMAGE_ROWS_PER_CHUNK if "images" in task.columns else ROWS_PER_CHUNK
    fetcher = ImageFetcher(allow_local=allow_local)
    with tqdm(total=rows, initial=first, desc=task.name, unit="row", disable=not progress) as bar:
        while first < rows:
            # A chunk is a function of the place where it begins alone, whether the build was interrupted there or not.
            stream = TextStream(task, fetcher, min(size, rows - first), place)
            chunk = []
            for row in stream:
                chunk.append(row)
                bar.update()
                bar.set_postfix(dropped=stream.dropped.total(), refresh=False)
            if not chunk:
                break
            _write_chunk(task, recipe, folder, first, chunk, stream)
            first, place = first + len(chunk), stream.place
    if first == 0:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(stream.dropped.items()))
        raise ValueError(f"no row of {task.name} could be had: {reasons or 'its source is empty'}")


def _write_chunk(
    task: TaskSpec, recipe: Recipe, folder: Path, first: int, chunk: list[dict[str, Any]], stream: TextStream
) -> None:
    """Write the shards of a chunk; the one that says where the next chunk begins comes last."""
    last = first + len(chunk) - 1
    splits = sorted({split_of(index) for index in range(first, last + 1)})
    for split in splits:
        rows = [row for index, row in enumerate(chunk, start=first) if split_of(index) == split]
        complete = split == splits[-1]
        footer = {
            **origin(task, recipe),
            "split": split,
            "first_index": first,
            "last_index": last if complete else first - 1,
            "dropped": dict(sorted(stream.dropped.items())) if complete else {},
            "place": stream.place if complete else None,
        }
        batch = pa.RecordBatch.from_pylist(rows, schema=row_schema(task))
        write_shard(unnamed_shard(folder, split, first), row_schema(task), [batch], footer)
