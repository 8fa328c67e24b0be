"""The response store: small responses appended and read back per second, listing of many chunks, memory.

    python tests/benchmarks/response_store.py --responses 500000 --chunks 10000
    python tests/benchmarks/response_store.py --distil 200000
    python tests/benchmarks/response_store.py --resume 10000000

Appends are durable (fsync of data, manifest and directories); reading checks every file's sha256.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from deepdistill_assets.recipe import load_recipe
from deepdistill_assets.responses.acceptance import Acceptance, Rule
from deepdistill_assets.responses.query_blocks import QueryBlocks
from deepdistill_assets.responses.waves import Distillation, Pair
from deepdistill_assets.tables import EXISTING_RESPONSE, QUERY, conform
from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.engines.base import GenerationResponse, GenerationSession
from deepdistill_resources.generation import GENERATED, content_key
from deepdistill_resources.lake import Lake

TEXT = "<think>7 and 8 is 15, write 5, carry 1</think><answer>15</answer> "


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def line(self, what, count):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(
            f"{what}: {count:,} in {wall:.2f} s wall, {cpu:.2f} s CPU: {count / wall:,.0f}/s, {count / cpu:,.0f}/CPU s"
        )


def chunk(keys):
    frame = pl.DataFrame({"response_id": keys}).with_columns(
        text=pl.concat_str(pl.lit(TEXT), "response_id"),
        status=pl.lit("ok"),
        finish_reason=pl.lit("stop"),
        prompt_tokens=pl.lit(40, pl.Int64),
        completion_tokens=pl.lit(24, pl.Int64),
        cumulative_logprob=pl.lit(-3.5),
        seed=pl.lit(7, pl.Int64),
        engine=pl.lit("benchmark 1"),
        started_at=pl.lit(None, pl.Datetime("us", "UTC")),
        seconds=pl.lit(0.1),
    )
    return frame.select(pl.col(name).cast(kind) for name, kind in GENERATED.items())


def append(root, responses, size):
    keys = [content_key(number=number) for number in range(responses)]
    frames = [chunk(keys[start : start + size]) for start in range(0, responses, size)]
    clock = Clock()
    store = ChunkStore(Lake(root=root), "responses", "response_id", GENERATED)
    for frame in frames:
        store.commit(frame)
    clock.line(f"appended in chunks of {size}", responses)
    return keys


class Instant(GenerationSession):
    """A teacher that costs nothing."""

    engine_name, engine_version = "instant", "1"

    def generate(self, requests, sampling):
        for request in requests:
            yield GenerationResponse(request.key, TEXT * 20, "ok", "stop", 40, 24, -3.5, 0.0)

    def perplexities(self, texts):
        return [None for _ in texts]


def distil(root, count):
    """The whole of `responses` but for Dagster: `count` queries of 4 kB, four passes of 1.3 kB."""
    recipe = load_recipe("deepdistill")
    source, teacher = next(iter(recipe.sources)), next(iter(recipe.teachers))
    files = [f"{root}/{start}.parquet" for start in range(0, count, 10_000)]
    for number, file in enumerate(files):
        query_rows(range(number * 10_000, min((number + 1) * 10_000, count)), source).write_parquet(file)
    print("before:", memory())
    clock = Clock()
    queries = QueryBlocks(pl.scan_parquet(files))
    store = ChunkStore(Lake(root=root), "distilled", "response_id", GENERATED)
    never = Acceptance(lambda: None, lambda identity: None, Rule({}))
    nothing = pl.LazyFrame(schema=EXISTING_RESPONSE)
    pair = Pair(recipe, source, teacher, "benchmark")
    outcome = Distillation(pair, queries, nothing, Instant(), store, never, lambda _: None).run()
    Lake(root=root).write_table("responses.parquet", outcome.rows.scan())
    clock.line("distilled by a teacher that costs nothing, and written as a table", outcome.rows.rows)
    print(memory())


def query_rows(numbers, source):
    names = pl.DataFrame({"query_id": [content_key(query=number) for number in numbers]})
    queries = names.with_columns(
        query_text=pl.col("query_id").repeat_by(60).list.join(" "),
        source=pl.lit(source),
        category=pl.lit("math"),
    )
    return conform(
        queries.with_columns(messages=pl.concat_list(pl.struct(role=pl.lit("user"), content="query_text"))), QUERY
    )


def resume(root, responses, size):
    """A large partition is listed and resumed by a process of its own, with the manifests alone and with blocks."""
    store = ChunkStore(Lake(root=root), "responses", "response_id", GENERATED)
    clock = Clock()
    for start in range(0, responses, size):
        store.commit(chunk([content_key(number=number) for number in range(start, min(start + size, responses))]))
    clock.line(f"keys made and appended in chunks of {size}", responses)
    for block in Lake(root=root).list_files(f"{store.directory}/blocks"):
        Lake(root=root).delete(block)
    for what in ("without blocks, which are written", "with blocks"):
        print(what, flush=True)
        subprocess.run([sys.executable, __file__, "--listed", root, "--responses", str(responses)], check=True)


def listed(root, responses):
    print("before:", memory())
    clock = Clock()
    store = ChunkStore(Lake(root=root), "responses", "response_id", GENERATED)
    store.refresh()
    clock.line("listed: keys", responses)
    print(memory())
    clock, window = Clock(), [content_key(number=number) for number in range(responses - 16_000, responses + 384)]
    assert len(store.missing(window)) == 384
    clock.line("what a window of 16,384 responses still lacks", 1)
    found = store.read(window)
    clock.line("and its rows read", found.height)
    print(memory())


def memory():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most, now = (int(status[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS"))
    return f"{most:,.0f} MB at most, {now:,.0f} MB now"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=500_000)
    parser.add_argument("--size", type=int, default=5000, help="responses per chunk")
    parser.add_argument("--chunks", type=int, default=10_000, help="chunks of 64 in the store that is listed")
    parser.add_argument("--directory", help="where the stores are written (default: a temporary directory)")
    parser.add_argument("--distil", type=int, help="instead: the whole of responses, for so many queries")
    parser.add_argument("--resume", type=int, help="instead: list and resume a store of so many responses")
    parser.add_argument("--listed", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.listed:
        listed(options.listed, options.responses)
        return
    if options.resume:
        with tempfile.TemporaryDirectory(dir=options.directory) as root:
            resume(root, options.resume, options.size)
        return
    if options.distil:
        with tempfile.TemporaryDirectory(dir=options.directory) as root:
            distil(root, options.distil)
        return
    with tempfile.TemporaryDirectory(dir=options.directory) as root:
        keys = append(root, options.responses, options.size)
        store = ChunkStore(Lake(root=root), "responses", "response_id", GENERATED)
        clock = Clock()
        clock.line("read back", sum(frame.height for frame in store.scan()))
        print(memory())
        del store, keys
    with tempfile.TemporaryDirectory(dir=options.directory) as root:
        keys = append(root, options.chunks * 64, 64)
        store, clock = ChunkStore(Lake(root=root), "responses", "response_id", GENERATED), Clock()
        assert store.missing([*keys, "one more"]) == ["one more"]
        clock.line("resume: chunks listed, their keys known", options.chunks)
        print(memory())


if __name__ == "__main__":
    main()
