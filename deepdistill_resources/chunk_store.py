"""Rows that cost too much to make twice: content-keyed, append-only, committed in chunks, resumable after any kill.

Layout below the store's directory (fingerprint = hash of the settings, so rows of different settings never mix):

    run=<fingerprint>/settings.json                      what the fingerprint was made from
    run=<fingerprint>/data/<sha256>.parquet              written first, named by content
    run=<fingerprint>/manifest/<number>.json             exists <=> the chunk is committed; lists the chunk's keys
    run=<fingerprint>/blocks/<first>-<last>.keys         what these manifests say, to read one file instead of many
    run=<fingerprint>/attempts/<time>-<nonce>.json       transient failures, for the record

The manifests are a log: entry n + 1 is created exclusively by a writer that has read entries 1..n and whose rows have
none of their keys. So two writers at once cannot commit one key twice, whatever their chunks look like. A block is
written when its manifests are all there; its numbers are never used again, also where its manifests are deleted.
"""

import hashlib
import io
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from deepdistill_resources.chunk_manifests import Chunk, block, manifest, plain_json, read_block, read_manifest
from deepdistill_resources.committed_keys import CommittedKeys, KeyTwice, packed
from deepdistill_resources.errors import StorageError
from deepdistill_resources.lake import Lake

_MANIFEST = re.compile(r"/manifest/(\d{8})\.json$")
_BLOCK = re.compile(r"/blocks/(\d{8})-(\d{8})\.keys$")
BLOCK = 1024  # manifests that a block repeats
LEARNED_AT = 2**20  # keys that are read before they are sorted in
SWEEP_AFTER_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class FailedAttempt:
    """One transient failure: nothing was committed for `key`, it will be asked again."""

    key: str
    attempt: int
    status: str
    error: str


class ChunkStore:
    """Rows of one schema with one unique key column, in one directory of the lake.

    Args:
        lake: where the files live.
        directory: lake path; the store writes below `directory/run=<fingerprint>`.
        key_column: name of the unique String column.
        schema: columns of the rows, key column included.
        settings: everything that changes what a row says (model revision, sampling, ...), plain JSON values.

    Raises:
        StorageError: the directory was written with other settings, or a stored file is corrupt.

    >>> import tempfile
    >>> lake = Lake(root=tempfile.mkdtemp())
    >>> store = ChunkStore(lake, "chunks", "key", {"key": pl.String(), "n": pl.Int64()})
    >>> store.commit(pl.DataFrame({"key": ["a", "b"], "n": [1, 2]}))
    2
    >>> store.missing(["c", "a"])
    ['c']
    """

    def __init__(
        self,
        lake: Lake,
        directory: str,
        key_column: str,
        schema: Mapping[str, pl.DataType],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.lake, self.key_column, self.schema = lake, key_column, dict(schema)
        self.settings = _plain(settings or {})
        self.fingerprint = hashlib.sha256(plain_json(self.settings)).hexdigest()[:16]
        self.directory = f"{directory}/run={self.fingerprint}"
        self._writer = secrets.token_hex(8)
        self._chunks: dict[int, Chunk] = {}
        self._keys = CommittedKeys()
        self._blocks: set[tuple[int, int]] = set()  # first and last number of those that are there and right
        self._used = 0  # the highest number that was ever seen
        self._seen = ""  # the last manifest of the last look
        self._looked = False
        self._claim_directory()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the work plan: the distinct keys that no committed chunk has, sorted."""
        self.refresh()
        wanted = sorted(set(keys))
        return [key for key, chunk in zip(wanted, self._keys.chunks_of(wanted).tolist(), strict=True) if not chunk]

    def commit(self, frame: pl.DataFrame) -> int:
        """Make rows durable, all or none; rows whose key another writer committed first are left out.

        Returns the number of rows this call committed.
        """
        frame = self._checked(frame)
        while True:
            taken = self._keys.chunks_of(frame[self.key_column].to_list())
            frame = frame.filter(pl.Series(taken == 0, dtype=pl.Boolean))
            if frame.is_empty():
                return 0
            if self._append(frame):
                return frame.height
            self.refresh()  # another writer was first: its keys are not ours to commit

    def read(self, keys: Iterable[str]) -> pl.DataFrame:
        """Return the committed rows of `keys`, sorted by key, every file checked against its sha256.

        Rows that another writer commits are seen after the next look (`missing`, `refresh`).
        """
        wanted = sorted(set(keys))
        if not self._looked:
            self.refresh()
        numbers = [number for number in np.unique(self._keys.chunks_of(wanted)).tolist() if number]
        chosen = pl.DataFrame({self.key_column: wanted}, schema={self.key_column: pl.String()})
        parts = [frame.join(chosen, on=self.key_column, how="semi") for frame in self._frames(numbers)]
        return pl.concat([pl.DataFrame(schema=self.schema), *parts]).sort(self.key_column)

    def scan(self) -> Iterator[pl.DataFrame]:
        """Yield the chunks one by one in the order of their commits, each checked; memory holds a few chunks."""
        self.refresh()
        yield from self._frames(sorted(self._chunks))

    def chunks(self) -> list[Chunk]:
        """Return all committed chunks in the order of their commits."""
        self.refresh()
        return [self._chunks[number] for number in sorted(self._chunks)]

    def log_attempts(self, attempts: Sequence[FailedAttempt]) -> None:
        """Write transient failures to the attempts log."""
        if attempts:
            name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
            self.lake.write_bytes(f"{self.directory}/attempts/{name}", plain_json([asdict(item) for item in attempts]))

    def attempts(self) -> list[FailedAttempt]:
        """Return all logged transient failures, oldest first; a torn file is left out."""
        found = []
        for path in self.lake.list_files(f"{self.directory}/attempts"):
            try:
                found += [FailedAttempt(**item) for item in json.loads(self.lake.read_bytes(path))]
            except (ValueError, TypeError):
                continue
        return found

    def sweep(self, older_than_seconds: float = SWEEP_AFTER_SECONDS) -> list[str]:
        """Delete data files that no manifest names and temporary files, both only when old; returns their paths."""
        self.refresh()
        named = {f"{self.directory}/data/{chunk.data}" for chunk in self._chunks.values()}
        orphans = [path for path in self.lake.list_old_files(self.directory, older_than_seconds) if _sweepable(path)]
        orphans = [path for path in orphans if path not in named]
        for path in orphans:
            self.lake.delete(path)
        return orphans

    def refresh(self) -> None:
        """Read the manifests that were committed since the last look; foreign files are ignored."""
        paths = self.lake.list_files(f"{self.directory}/manifest", after=self._seen)
        numbers = {int(match.group(1)): path for path in paths if (match := _MANIFEST.search(path))}
        new = {number: path for number, path in numbers.items() if number not in self._chunks}
        if not self._looked or len(new) >= BLOCK:
            self._learn(self._from_blocks(new))
        self._learn(self._read_each(self._from_manifest, [item for item in new.items() if item[0] not in self._chunks]))
        self._seen, self._looked = max([self._seen, *numbers.values()]), True
        self._write_blocks()

    def _append(self, frame: pl.DataFrame) -> bool:
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd")
        data, keys = buffer.getvalue(), frame[self.key_column].to_list()
        chunk = Chunk(self._used + 1, hashlib.sha256(data).hexdigest(), len(data), self._writer, frame.height)
        self.lake.write_bytes(f"{self.directory}/data/{chunk.data}", data)
        if not self.lake.create_bytes(self._manifest_path(chunk.number), manifest(chunk, keys)):
            return False
        self._learn([([chunk], packed(keys))])
        self._write_blocks()
        return True

    def _learn(self, found: Iterable[tuple[list[Chunk], bytes]]) -> None:
        """Take in committed chunks with their packed keys, many keys at a time."""
        batch: list[tuple[list[Chunk], bytes]] = []
        rows = 0
        for chunks, keys in found:
            batch.append((chunks, keys))
            rows += sum(chunk.rows for chunk in chunks)
            if rows >= LEARNED_AT:
                self._learn_batch(batch)
                batch, rows = [], 0
        self._learn_batch(batch)

    def _learn_batch(self, batch: Sequence[tuple[list[Chunk], bytes]]) -> None:
        chunks = [chunk for some, _ in batch for chunk in some]
        numbers = np.repeat([chunk.number for chunk in chunks], [chunk.rows for chunk in chunks]).astype(np.uint32)
        try:
            self._keys.add(b"".join(keys for _, keys in batch), numbers)
        except KeyTwice as error:
            raise StorageError(f"{self.directory}: {error}.") from error
        self._chunks |= {chunk.number: chunk for chunk in chunks}
        self._used = max([self._used, *(chunk.number for chunk in chunks)])

    def _from_manifest(self, entry: tuple[int, str]) -> tuple[list[Chunk], bytes]:
        number, path = entry
        try:
            chunk, keys = read_manifest(self.lake.read_bytes(path))
        except (ValueError, TypeError, KeyError) as error:
            raise self._corrupt(path, number) from error
        if chunk.number != number:
            raise self._corrupt(path, number)
        return [chunk], packed(keys)

    def _from_blocks(self, new: Mapping[int, str]) -> Iterator[tuple[list[Chunk], bytes]]:
        """Yield what blocks say of manifests that are `new`, where they say it of all in their range."""
        ranges = [
            (int(match.group(1)), int(match.group(2)), path)
            for path in self.lake.list_files(f"{self.directory}/blocks")
            if (match := _BLOCK.search(path))
        ]
        self._used, left = max([self._used, *(last for _, last, _ in ranges)]), dict(new)
        for first, last, content in self._read_each(self._from_block, ranges):
            listed = [(number, left[number]) for number in range(first, last + 1) if number in left]
            if content is None or not listed or [chunk.number for chunk in content[0]] != [n for n, _ in listed]:
                continue
            if self._from_manifest(listed[-1])[0] == content[0][-1:]:
                self._blocks.add((first, last))
                left = {number: path for number, path in left.items() if not first <= number <= last}
                yield content

    def _from_block(self, entry: tuple[int, int, str]) -> tuple[int, int, tuple[list[Chunk], bytes] | None]:
        first, last, path = entry
        try:
            return first, last, read_block(self.lake.read_bytes(path))
        except (ValueError, TypeError):
            return first, last, None

    def _read_each(self, action: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Read small files: threads help where each one is a request, and hinder where it is a system call."""
        if self.lake.is_local:
            yield from map(action, items)
            return
        for start in range(0, len(items), 64):
            yield from _in_parallel(action, items[start : start + 64])

    def _write_blocks(self) -> None:
        """Write the blocks that lack; any writer's says the same."""
        for first in range(1, max(self._chunks, default=0) - BLOCK + 2, BLOCK):
            last = first + BLOCK - 1
            if (first, last) not in self._blocks:
                chunks = [self._chunks[number] for number in range(first, last + 1) if number in self._chunks]
                keys = self._keys.of_chunks(first, last)
                self.lake.write_bytes(f"{self.directory}/blocks/{first:08d}-{last:08d}.keys", block(chunks, keys))
                self._blocks.add((first, last))

    def _manifest_path(self, number: int) -> str:
        return f"{self.directory}/manifest/{number:08d}.json"

    def _frames(self, numbers: Sequence[int]) -> Iterator[pl.DataFrame]:
        for start in range(0, len(numbers), 64):
            yield from _in_parallel(self._read_data, [self._chunks[number] for number in numbers[start : start + 64]])

    def _read_data(self, chunk: Chunk) -> pl.DataFrame:
        path = f"{self.directory}/data/{chunk.data}"
        data = self.lake.read_bytes(path) if self.lake.exists(path) else b""
        if len(data) != chunk.size or hashlib.sha256(data).hexdigest() != chunk.sha256:
            raise self._corrupt(path, chunk.number)
        frame = pl.read_parquet(io.BytesIO(data))
        # A column that the schema gained since the chunk was written is null: no row is made again for it.
        return frame.select(
            (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name)
            for name, kind in self.schema.items()
        )

    def _corrupt(self, path: str, number: int) -> StorageError:
        fix = f"delete {self.lake.uri(self._manifest_path(number))}: only its rows are made again."
        return StorageError(f"{self.lake.uri(path)} is corrupt or missing.", fix)

    def _checked(self, frame: pl.DataFrame) -> pl.DataFrame:
        if dict(frame.schema) != self.schema:
            raise StorageError(f"{self.directory}: rows have schema {frame.schema}, the store has {self.schema}.")
        if frame[self.key_column].null_count() or frame[self.key_column].n_unique() != frame.height:
            raise StorageError(f"{self.directory}: column {self.key_column} of the rows is null or not unique.")
        return frame.sort(self.key_column)

    def _claim_directory(self) -> None:
        path, mine = f"{self.directory}/settings.json", plain_json(self.settings)
        if not self.lake.exists(path) and self.lake.create_bytes(path, mine):
            return
        try:
            theirs = json.loads(self.lake.read_bytes(path))
        except ValueError as error:
            raise StorageError(f"{self.lake.uri(path)} is corrupt.", "delete that file.") from error
        if theirs != self.settings:
            names = sorted(set(theirs) | set(self.settings))
            changed = [name for name in names if theirs.get(name) != self.settings.get(name)]
            raise StorageError(
                f"{self.lake.uri(self.directory)} was written with other settings ({', '.join(changed)}).",
                "move that directory away.",
            )


def _sweepable(path: str) -> bool:
    return path.endswith(".tmp") or ("/data/" in path and path.endswith(".parquet"))


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))


def _in_parallel(action: Any, items: Sequence[Any]) -> list[Any]:
    if len(items) < 2:
        return [action(item) for item in items]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(action, items))
