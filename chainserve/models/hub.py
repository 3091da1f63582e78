"""Models on the hub: small files whole, weights by byte range, kept on this disk so that they come only once.

A file that already lies whole in the hub's own cache is read from there.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from chainserve.errors import ModelNotFoundError
from chainserve.models.checkpoint import SafetensorsSource, first_line, shard_files
from chainserve.models.headers import LENGTH_BYTES, header_length, parse_header, read_header
from chainserve.models.ranges import read_range
from chainserve.models.source import TensorInfo, Traffic, progress_bar

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
NUM_CONNECTIONS = 4
RUN_BYTES = 64 << 20
"""Neighbouring tensors are asked for together, up to this size."""


def open_hub(name: str) -> SafetensorsSource:
    """The model `org/repo` or `org/repo@revision`; ModelNotFoundError if the hub does not give it to us.

    HF_ENDPOINT, HF_TOKEN and HF_HOME mean what they mean to the hub's own library.
    """
    repo, _, revision = name.partition("@")
    # The library reads HF_ENDPOINT only when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision or None,
                allow_patterns=SMALL_FILES,
                endpoint=endpoint,
                cache_dir=constants.HF_HUB_CACHE,
            )
        )
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repo} is gated: accept its terms on the hub, and set HF_TOKEN to a token of yours"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"the hub has no model {name} for us: check the name, or set HF_TOKEN if it is private"
        ) from error
    except (HTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"the hub does not give us {name} ({first_line(error)}): try again, or give a local folder"
        ) from error
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{name} has no config.json on the hub: choose a model saved by transformers")
    # A snapshot's folder bears the name of its commit, so what is kept under that name never goes stale.
    files = HubFiles(repo, folder.name, endpoint)
    return SafetensorsSource(name, folder, HubShards(files, shard_files(folder)))


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of one commit of a repository: where they come from and where they are kept."""

    repo: str
    commit: str
    endpoint: str | None

    def url(self, file: str) -> str:
        return hf_hub_url(self.repo, file, revision=self.commit, endpoint=self.endpoint)

    def whole(self, file: str) -> Path | None:
        """The file in the hub's own cache, if it is there."""
        path = try_to_load_from_cache(self.repo, file, revision=self.commit, cache_dir=constants.HF_HUB_CACHE)
        return Path(path) if isinstance(path, str) else None

    def part(self, file: str, part: str) -> Path:
        """Where we keep a part of the file."""
        folder = Path(constants.HF_HOME) / "chainserve" / self.repo.replace("/", "--") / self.commit / file
        return folder / quote(part, safe="")


class HubShards:
    """Safetensors files on the hub, of which only headers and the tensors asked for are fetched."""

    def __init__(self, files: HubFiles, names: list[str]) -> None:
        self._files = files
        self.traffic = Traffic()
        self.tensors: dict[str, TensorInfo] = {}
        with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
            for infos, traffic in pool.map(self._read_header, names):
                self.tensors |= {info.name: info for info in infos}
                self.traffic.read += traffic.read
                self.traffic.downloaded += traffic.downloaded

    def fetch(self, infos: Iterable[TensorInfo], *, progress: bool) -> None:
        runs = neighbours(info for info in infos if not self._is_here(info))
        num_bytes = sum(info.nbytes for run in runs for info in run)
        stop = threading.Event()
        with (
            progress_bar(num_bytes, doing="Downloading", progress=progress and num_bytes > 0) as bar,
            ThreadPoolExecutor(NUM_CONNECTIONS) as pool,
        ):

            def count(num_bytes: int) -> None:
                if stop.is_set():
                    raise CancelledError
                with bar.get_lock():
                    bar.update(num_bytes)
                    self.traffic.downloaded += num_bytes

            try:
                for _ in pool.map(lambda run: self._download(run, count), runs):
                    pass
            finally:
                # An error in one run, or Ctrl-C, ends the others at their next bytes.
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def locate(self, info: TensorInfo) -> tuple[Path, int]:
        whole = self._files.whole(info.file)
        return (whole, info.offset) if whole else (self._files.part(info.file, f"{info.name}.bin"), 0)

    def _is_here(self, info: TensorInfo) -> bool:
        path, offset = self.locate(info)
        return path.is_file() and path.stat().st_size >= offset + info.nbytes

    def _download(self, run: list[TensorInfo], count: Callable[[int], None]) -> None:
        """Fetch tensors that follow each other with one request, each into its own file."""
        pieces = read_range(self._files.url(run[0].file), run[0].offset, run[-1].end)
        piece = memoryview(b"")
        for info in run:
            with atomic_file(self.locate(info)[0]) as file:
                missing = info.nbytes
                while missing:
                    piece = piece or memoryview(next(pieces))
                    count(file.write(piece[:missing]))
                    missing, piece = missing - len(piece[:missing]), piece[missing:]

    def _read_header(self, name: str) -> tuple[list[TensorInfo], Traffic]:
        """Tensors of one file, and what it took to learn them."""
        whole, kept = self._files.whole(name), self._files.part(name, "header")
        if whole:
            header = read_header(whole)
            return parse_header(header, file=name, file_bytes=whole.stat().st_size), Traffic(
                read=LENGTH_BYTES + len(header)
            )
        if kept.is_file():
            header = kept.read_bytes()
            return parse_header(header, file=name), Traffic(read=len(header))
        url = self._files.url(name)
        length = header_length(b"".join(read_range(url, 0, LENGTH_BYTES)), file=url)
        header = b"".join(read_range(url, LENGTH_BYTES, LENGTH_BYTES + length))
        infos = parse_header(header, file=name)
        with atomic_file(kept) as file:
            file.write(header)
        return infos, Traffic(downloaded=LENGTH_BYTES + length)


def neighbours(infos: Iterable[TensorInfo]) -> list[list[TensorInfo]]:
    """Group tensors that follow each other in a file, up to RUN_BYTES together."""
    runs: list[list[TensorInfo]] = []
    for info in sorted(infos, key=lambda info: (info.file, info.offset, info.end)):
        run = runs[-1] if runs else [info]
        follows = (run[-1].file, run[-1].end) == (info.file, info.offset)
        if follows and info.end - run[0].offset <= RUN_BYTES:
            run.append(info)
        else:
            runs.append([info])
    return runs


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is there either whole or not at all, also when several processes write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            yield file
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
