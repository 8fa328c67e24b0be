"""A writer of a chunk store that is killed (SIGKILL), at a named point of a system call or at a random instant.

By hand, until a thousand kills are done:

    python tests/chaos/crashing.py --kills 1000

One process imports everything and forks a child per kill, so a kill costs milliseconds. A point is `name:when`: before
or after each write, fsync, rename, link, unlink of a directory, or PUT of S3; `write:torn` leaves half of a file.
"""

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

CHUNK = 20
BLOCK = 4  # chunks, so that kills meet the writing of blocks, too
DIRECTORY_POINTS = ["write:before", "write:torn", "write:after"] + [
    f"{name}:{when}" for name in ("fsync", "rename", "link", "unlink") for when in ("before", "after")
]
S3_POINTS = ["put:before", "put:after"]


def keys_of(count):
    return [f"{number:05d}" for number in range(count)]


class Forge:
    """The process that forks writers."""

    def __init__(self, root, endpoint_url=None):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--serve", root, *([endpoint_url] if endpoint_url else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout.readline() == "ready\n"

    def write(self, count, store="chunks", point=None, hit=1, after=None):
        """Let a child commit all missing keys; returns (finished, keys it was asked to make)."""
        job = {"count": count, "store": store, "point": point, "hit": hit, "after": after}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())
        assert result["status"] in (0, signal.SIGKILL), f"the writer failed: {result}"
        return result["status"] == 0, result["asked"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)


def kill_until(forge, check, kills, points, seed=0, count=4000, log=lambda line: None):
    """Kill writers until `kills` are done; when a store is complete it is checked and the next one begun.

    Raises AssertionError if a store lacks or doubles a key, or if a kill cost more than one chunk.
    """
    generator, done, stores, unused = random.Random(seed), 0, 0, set(points)
    while done < kills or unused:
        name, asked, killed, finished = f"chunks{stores}", 0, 0, False
        while not finished:
            if done + killed >= kills and not unused:
                how = {}
            elif generator.random() < 0.5 or unused:
                point = unused.pop() if unused else generator.choice(points)
                how = {"point": point, "hit": generator.randrange(1, 8)}
            else:
                how = {"after": generator.uniform(0, 0.06)}
            finished, number = forge.write(count, name, **how)
            asked, killed = asked + number, killed + (not finished)
        check(name, count)
        assert asked <= count + CHUNK * killed, f"{asked - count} keys made twice by {killed} kills"
        done, stores = done + killed, stores + 1
        log(f"{done} kills, {stores} stores complete, {asked - count} keys of the last one made again")
    return done


def complete(lake, name, count):
    """Check that every key is there once, with its own value, and stays so after a sweep."""
    import polars as pl

    from deepdistill_resources import chunk_store

    with patch.object(chunk_store, "BLOCK", BLOCK):
        store = chunk_store.ChunkStore(lake, name, "key", {"key": pl.String(), "value": pl.String()})
        store.sweep(older_than_seconds=-60)
        found = pl.concat(store.scan()).sort("key")
    assert found.rows() == [(key, f"v{key}") for key in keys_of(count)]


def _serve(root, endpoint_url=None):
    import polars  # noqa: F401 - before the fork, where no thread of it runs

    from deepdistill_resources.chunk_store import ChunkStore  # noqa: F401
    from deepdistill_resources.lake import Lake

    lake = Lake(root=root, endpoint_url=endpoint_url)
    lake.uri("x")  # makes the S3 client, which is slow, before the fork
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _write(lake, job, writing)
        os.close(writing)
        if job["after"] is not None:
            time.sleep(job["after"])
            os.kill(child, signal.SIGKILL)
        asked = b"".join(iter(lambda: os.read(reading, 65536), b""))  # noqa: B023
        os.close(reading)
        _, status = os.waitpid(child, 0)
        code = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        print(json.dumps({"status": code, "asked": len(asked) * CHUNK}), flush=True)


def _write(lake, job, asked):
    import polars as pl

    from deepdistill_resources import chunk_store

    chunk_store.BLOCK = BLOCK
    try:
        store = chunk_store.ChunkStore(lake, job["store"], "key", {"key": pl.String(), "value": pl.String()})
        wanted = store.missing(keys_of(job["count"]))
        if job["point"]:
            _arm(job["point"], job["hit"])
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            os.write(asked, b".")
            store.commit(pl.DataFrame({"key": chunk, "value": ["v" + key for key in chunk]}))
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _arm(point, hit):
    """Replace the call that `point` names by one that kills this process at its hit-th call."""
    name, when = point.split(":")
    calls = {"left": hit}

    def due():
        calls["left"] -= 1
        return calls["left"] == 0

    def dying(function):
        def call(*args, **kwargs):
            now = due()
            if now and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    if name == "put":
        from botocore.client import BaseClient

        real = BaseClient._make_api_call
        deadly = dying(real)
        BaseClient._make_api_call = lambda self, operation, parameters: (deadly if operation == "PutObject" else real)(
            self, operation, parameters
        )
    elif name == "write":
        opened = io.open

        def open_dying(file, mode="r", *args, **kwargs):
            handle = opened(file, mode, *args, **kwargs)
            return _DyingFile(handle, due, when) if "w" in mode else handle

        io.open = open_dying
    else:
        system = {"fsync": "fsync", "rename": "replace", "link": "link", "unlink": "unlink"}[name]
        setattr(os, system, dying(getattr(os, system)))


class _DyingFile:
    def __init__(self, file, due, when):
        self.file, self.due, self.when = file, due, when

    def write(self, data):
        now = self.due()
        if now and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if now and self.when == "torn":
            data = data[: len(data) // 2]
        self.file.write(data)
        if now:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from deepdistill_resources.lake import Lake

    with tempfile.TemporaryDirectory() as root, Forge(root) as forge:
        lake = Lake(root=root)
        done = kill_until(
            forge,
            lambda name, count: complete(lake, name, count),
            options.kills,
            DIRECTORY_POINTS,
            options.seed,
            log=print,
        )
        print(f"{done} kills: 0 lost, 0 doubled, at most one chunk made again per kill")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve(*sys.argv[2:])
    else:
        main()
