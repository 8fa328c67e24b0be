"""What a chunk store writes about its chunks: a manifest for each, and blocks that repeat many manifests in one file.

A manifest is what commits a chunk. A block only saves reading: it is used where it is whole and speaks of exactly the
manifests that are there, and ignored otherwise.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepdistill_resources.committed_keys import KEY_BYTES

_SEAL = b'{"checksum": "'
_SEALED = len(_SEAL) + 64 + len(b'", ')


@dataclass(frozen=True, slots=True)
class Chunk:
    """One committed chunk; `sha256` and `size` (bytes) are those of its data file."""

    number: int
    sha256: str
    size: int
    writer: str
    rows: int

    @property
    def data(self) -> str:
        """The data file's name."""
        return f"{self.sha256}.parquet"


def manifest(chunk: Chunk, keys: Sequence[str]) -> bytes:
    """Return a manifest: JSON with the chunk's facts, its keys, and a checksum of all that."""
    body = {"number": chunk.number, "data": chunk.data, "sha256": chunk.sha256, "size": chunk.size}
    text = plain_json({**body, "writer": chunk.writer, "keys": list(keys)})
    return _SEAL + hashlib.sha256(text).hexdigest().encode() + b'", ' + text[1:]


def read_manifest(data: bytes) -> tuple[Chunk, list[str]]:
    """Return the chunk and its keys; raises ValueError unless every byte is as it was written."""
    if not data.startswith(_SEAL):
        raise ValueError("no manifest")
    if data[len(_SEAL) : _SEALED] != hashlib.sha256(b"{" + data[_SEALED:]).hexdigest().encode() + b'", ':
        raise ValueError("another checksum")
    body = json.loads(data)
    return Chunk(body["number"], body["sha256"], body["size"], body["writer"], len(body["keys"])), body["keys"]


def block(chunks: Sequence[Chunk], keys: bytes) -> bytes:
    """Return a block: a checksum, a line of JSON with the chunks, and their packed keys in the same order."""
    facts = [(chunk.number, chunk.sha256, chunk.size, chunk.writer, chunk.rows) for chunk in chunks]
    body = plain_json(facts) + b"\n" + keys
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def read_block(data: bytes) -> tuple[list[Chunk], bytes]:
    """Return the chunks and their packed keys; raises ValueError unless every byte is as it was written."""
    checksum, _, body = data.partition(b"\n")
    if checksum != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("another checksum")
    head, _, keys = body.partition(b"\n")
    chunks = [Chunk(*item) for item in json.loads(head)]
    if len(keys) != KEY_BYTES * sum(chunk.rows for chunk in chunks):
        raise ValueError("another number of keys")
    return chunks, keys


def plain_json(value: Any) -> bytes:
    """Return JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
