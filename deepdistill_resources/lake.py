"""The lake: where tables and files live, a local directory or `s3://bucket/prefix`, behind one small interface."""

import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from deepdistill_resources.errors import StorageError
from deepdistill_resources.portable import PortableResource

BYTES_PER_GROUP = 32 * 2**20
MOST_ROWS_PER_GROUP = 2**18


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written whole: its uri, size in bytes and sha256."""

    uri: str
    size: int
    sha256: str


def _fsync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _DirectoryStore:
    """Files below a local directory; every write is temp + fsync + rename (or link, where it must be exclusive)."""

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser().absolute()

    def uri(self, path: str) -> str:
        return str(self.root / path)

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def size(self, path: str) -> int:
        return (self.root / path).stat().st_size

    def _temporary(self, path: str, data: bytes) -> tuple[Path, Path]:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk: a torn file must not hold the space
            temporary.unlink(missing_ok=True)
            raise
        return target, temporary

    def write(self, path: str, data: bytes) -> None:
        target, temporary = self._temporary(path, data)
        temporary.replace(target)
        _fsync_directory(target.parent)

    def write_file(self, path: str, local: Path) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
        try:
            shutil.copyfile(local, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_directory(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        target, temporary = self._temporary(path, data)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _fsync_directory(target.parent)
        return True

    def list_old(self, prefix: str, seconds: float) -> list[str]:
        limit = time.time() - seconds
        files = (file for file in (self.root / prefix).rglob("*") if file.is_file())
        old = (file for file in files if file.stat().st_mtime <= limit)
        return sorted(str(PurePosixPath(file.relative_to(self.root))) for file in old)

    def list(self, prefix: str, after: str) -> list[str]:
        skip, found = len(str(self.root)) + 1, list[str]()
        for directory, _, names in os.walk(self.root / prefix):
            place = f"{directory}/"[skip:]
            found += [place + name for name in names if not name.endswith(".tmp")]
        return sorted(path for path in found if path > after)

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)


ATTEMPTS = 5  # of what the S3 client does not retry by itself


class _S3Store:
    """Objects below `s3://bucket/prefix`; a PUT is atomic, an exclusive PUT uses `If-None-Match: *`."""

    def __init__(self, root: str, client: Any) -> None:
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        self.bucket, self.prefix, self.client = bucket, prefix.strip("/"), client

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}".strip("/")

    def uri(self, path: str) -> str:
        return f"s3://{self.bucket}/{self._key(path)}"

    def exists(self, path: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.client.head_object(Bucket=self.bucket, Key=self._key(path))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        return True

    def size(self, path: str) -> int:
        return int(self.client.head_object(Bucket=self.bucket, Key=self._key(path))["ContentLength"])

    def read(self, path: str) -> bytes:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for attempt in range(1, ATTEMPTS + 1):
            reply = self.client.get_object(Bucket=self.bucket, Key=self._key(path))
            try:
                return reply["Body"].read()
            except (HTTPClientError, IncompleteReadError):  # the client retries requests, but not a body cut short
                if attempt == ATTEMPTS:
                    raise
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def write(self, path: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data)

    def write_file(self, path: str, local: Path) -> None:
        self.client.upload_file(str(local), self.bucket, self._key(path))

    def create(self, path: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, IfNoneMatch="*")
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 409 and attempt < ATTEMPTS:  # another conditional write is on its way: how it ends decides
                    time.sleep(0.1 * 2**attempt)
                    continue
                if status not in (409, 412):
                    raise
                # A lost acknowledgement makes our own commit look like a conflict: equal content is success.
                return self.read(path) == data
            return True
        raise AssertionError("unreachable")

    def _objects(self, prefix: str, after: str = "") -> Iterator[tuple[str, Any]]:
        start = {"StartAfter": self._key(after)} if after else {}
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._key(prefix).rstrip("/") + "/", **start
        )
        skip = len(self.prefix) + 1 if self.prefix else 0
        return ((item["Key"][skip:], item) for page in pages for item in page.get("Contents", []))

    def list_old(self, prefix: str, seconds: float) -> list[str]:
        limit = time.time() - seconds
        return sorted(path for path, item in self._objects(prefix) if item["LastModified"].timestamp() <= limit)

    def list(self, prefix: str, after: str) -> list[str]:
        return sorted(path for path, _ in self._objects(prefix, after))

    def delete(self, path: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self._key(path))


class Lake(PortableResource):
    """Parquet tables and files below one root; paths are relative, with `/`, and never leave the root.

    `root` is a directory or `s3://bucket/prefix`. Credentials come from the environment's usual S3 variables, never
    from this configuration, so that they cannot reach the event log.
    """

    root: str
    endpoint_url: str | None = None
    region_name: str = "us-east-1"

    @cached_property
    def _store(self) -> _DirectoryStore | _S3Store:
        if not self.root.startswith("s3://"):
            return _DirectoryStore(self.root)
        from dagster_aws.s3 import S3Resource

        resource = S3Resource(endpoint_url=self.endpoint_url, region_name=self.region_name, max_attempts=5)
        return _S3Store(self.root, resource.get_client())

    @property
    def is_local(self) -> bool:
        """Whether the root is a local directory."""
        return not self.root.startswith("s3://")

    @property
    def storage_options(self) -> dict[str, str] | None:
        """The options polars needs to read from this lake."""
        if self.is_local:
            return None
        options = {"aws_region": self.region_name}
        if self.endpoint_url:
            options["aws_endpoint_url"] = self.endpoint_url
            if self.endpoint_url.startswith("http://"):
                options["aws_allow_http"] = "true"
        return options

    def uri(self, path: str) -> str:
        """Return the absolute place of `path`."""
        return self._store.uri(_checked(path))

    def exists(self, path: str) -> bool:
        """Whether a file (or, locally, a directory) is there."""
        return self._store.exists(_checked(path))

    def read_bytes(self, path: str) -> bytes:
        """Return the whole file; raises StorageError when it is not there or cannot be read."""
        return self._guarded("read", path, lambda: self._store.read(_checked(path)))

    def write_bytes(self, path: str, data: bytes) -> WrittenFile:
        """Write or replace a file; readers see the old or the new one, never a part."""
        self._guarded("write", path, lambda: self._store.write(_checked(path), data))
        return WrittenFile(self.uri(path), len(data), hashlib.sha256(data).hexdigest())

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Write a file only if none is there; returns False when another writer was first with other content."""
        return self._guarded("create", path, lambda: self._store.create(_checked(path), data))

    def list_files(self, prefix: str, after: str = "") -> list[str]:
        """Return the sorted paths of all files below `prefix`; only those that come `after` a path, if one is given."""
        return self._guarded("list", prefix, lambda: self._store.list(_checked(prefix), after))

    def list_old_files(self, prefix: str, seconds: float) -> list[str]:
        """Return the sorted paths of files below `prefix` that are older than `seconds`, temporary ones included."""
        return self._guarded("list", prefix, lambda: self._store.list_old(_checked(prefix), seconds))

    def delete(self, path: str) -> None:
        """Remove a file; a missing one is no error."""
        self._guarded("delete", path, lambda: self._store.delete(_checked(path)))

    def write_table(self, path: str, table: pl.DataFrame | pl.LazyFrame) -> WrittenFile:
        """Write a parquet table atomically (zstd, page checksums); a LazyFrame is streamed, not collected."""
        with tempfile.TemporaryDirectory(prefix="deepdistill-") as directory:
            temporary = Path(directory) / "table.parquet"
            if isinstance(table, pl.LazyFrame):
                group = _rows_per_group(table.head(1000).collect(engine="streaming"))
                table.sink_parquet(temporary, compression="zstd", row_group_size=group)
            else:
                table.write_parquet(temporary, compression="zstd", row_group_size=_rows_per_group(table))
            return self.write_file(path, temporary)

    def write_file(self, path: str, local: Path) -> WrittenFile:
        """Write or replace a file with the content of a local one, which is never in memory as a whole."""
        self._guarded("write", path, lambda: self._store.write_file(_checked(path), local))
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return WrittenFile(self.uri(path), local.stat().st_size, digest)

    def read_table(self, path: str) -> pl.DataFrame:
        """Read a whole parquet table; raises StorageError when it is missing or corrupt."""
        return self._guarded("read", path, lambda: self.scan_tables([path]).collect())

    def scan_tables(self, paths: list[str]) -> pl.LazyFrame:
        """Return one lazy scan over parquet tables of one schema."""
        return pl.scan_parquet(
            [self.uri(path) for path in paths], storage_options=self.storage_options, hive_partitioning=False
        )

    def publish_directory(self, source: Path, path: str) -> list[WrittenFile]:
        """Copy a directory (a checkpoint) to `path`; its marker file `_COMPLETE` comes last, so a torn copy is seen."""
        files = sorted(file for file in source.rglob("*") if file.is_file())
        written = [self.write_file(f"{path}/{file.relative_to(source).as_posix()}", file) for file in files]
        self.write_bytes(f"{path}/_COMPLETE", b"")
        return written

    def fetch_directory(self, path: str) -> Path:
        """Return a local directory with the files of `path`; on S3 they are downloaded to a cache first."""
        if not self.exists(f"{path}/_COMPLETE"):
            raise StorageError(f"{self.uri(path)} is missing or was not written to its end.", "materialize it again.")
        if isinstance(self._store, _DirectoryStore):
            return Path(self.uri(path))
        digest = hashlib.sha256(self.uri(path).encode()).hexdigest()[:16]
        target = Path(tempfile.gettempdir()) / "deepdistill-directories" / digest
        shutil.rmtree(target, ignore_errors=True)
        for file in self.list_files(path):
            local = target / file.removeprefix(f"{path}/")
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(self.read_bytes(file))
        return target

    def _guarded(self, verb: str, path: str, action: Any) -> Any:
        try:
            return action()
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(f"cannot {verb} {self.root}/{path}: {type(error).__name__}: {error}") from error


def _rows_per_group(table: pl.DataFrame) -> int:
    """Return how many rows make a row group: what a reader must hold at once."""
    bytes_per_row = table.estimated_size() / max(1, table.height)
    return int(min(MOST_ROWS_PER_GROUP, max(1, BYTES_PER_GROUP / max(1.0, bytes_per_row))))


def _checked(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts:
        raise StorageError(f"path {path!r} leaves the lake.")
    return str(PurePosixPath(path))
