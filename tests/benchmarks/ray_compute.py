"""`RayCompute` beside `LocalCompute`: overhead on the same cores, scaling of slow work, memory of the driver.

    python tests/benchmarks/ray_compute.py overhead [--batches 40]
    python tests/benchmarks/ray_compute.py scaling
    python tests/benchmarks/ray_compute.py memory [--rows 10000000]

overhead: CPU seconds of every process (driver, workers and what they start, Ray's own) a batch, from a quarter of the
batches on, so that the start of cluster and workers is left out; that of the cluster is stated apart.
scaling: batches that sleep, so that any number of workers fits on this machine; efficiency is the ideal time over the
time, once all workers are open.
memory: the most that the driver held while all rows went to the workers and back.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import polars as pl
import psutil
from math_verification import problems

from deepdistill_assets.queries.minhash import BLOCK, query_signatures
from deepdistill_assets.recipe import Deduplication
from deepdistill_assets.tables import QUERY, conform
from deepdistill_assets.verification.verdicts import BATCH, OpenVerifier, verify
from deepdistill_resources.compute import Compute, Demand, LocalCompute, RayCompute, Worker, connect
from deepdistill_resources.lake import Lake
from deepdistill_resources.verifiers.base import VerificationRequest, VerificationSettings
from deepdistill_resources.verifiers.suite import VerifierSuite

CORES = 2
T = TypeVar("T")


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and all below it, also of those that have ended."""
    own = psutil.Process()
    return sum(sum(each.cpu_times()[:4]) for each in (own, *own.children(recursive=True)))


class Meter:
    """CPU and wall seconds between two moments of an iteration, with equally much on its way at both."""

    def __init__(self, batches: int) -> None:
        self.marks: dict[int, tuple[float, float]] = {}
        self.first, self.last = batches // 4, batches - 8

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and look at the clocks on the way."""
        for index, item in enumerate(items):
            if index in (self.first, self.last):
                self.marks[index] = (cpu_seconds(), time.monotonic())
            yield item

    def cost(self) -> float:
        """Return CPU seconds a batch."""
        return (self.marks[self.last][0] - self.marks[self.first][0]) / (self.last - self.first)


def signatures(compute: Compute, batches: int) -> Meter:
    """Sign queries of 30 words."""
    words, meter = pl.Series([f"word{index}" for index in range(5000)]), Meter(batches)
    texts = [" ".join(words.sample(30, with_replacement=True, seed=row)) for row in range(1000)]
    rows = pl.DataFrame({"row": pl.int_range(batches * BLOCK, eager=True)})
    frame = rows.select(
        query_id=pl.col("row").cast(pl.String),
        source=pl.lit("s"),
        query_text=pl.format("{} {}", pl.lit(pl.Series([texts])).list.get(pl.col("row") % 1000), "row"),
    )
    query_signatures(
        conform(frame, QUERY),
        100,
        Deduplication(),
        None,
        lambda work, blocks: meter(compute.apply(work, blocks, name="signatures")),
    )
    return meter


def verification(compute: Compute, batches: int) -> Meter:
    """Verify math responses, and keep the verdicts."""
    pairs = [(reference, answer) for reference, answers in problems(True, 1, True) for answer in answers]
    meter, wanted = Meter(batches), []
    for index in range(batches * BATCH):
        reference, answer = pairs[index % len(pairs)]
        text = f"\\boxed{{{answer}}}"
        wanted.append(
            VerificationRequest(f"r{index}", "math", f"q{index}", text, "t", text, reference_answer=reference)
        )
    with tempfile.TemporaryDirectory() as directory:
        suite = VerifierSuite(workers=compute.cores())
        opener = OpenVerifier(suite, Lake(root=directory), VerificationSettings(), "source=s/teacher=t")
        verify(
            wanted,
            [None] * len(wanted),
            lambda requests, count: meter(compute.map_batches(requests, opener, name="verification")),
        )
    return meter


def overhead(batches: int) -> None:
    """Print CPU seconds of both, and their ratio."""
    started, before = time.monotonic(), cpu_seconds()
    connect()
    print(f"start of the cluster: {time.monotonic() - started:.1f} s, {cpu_seconds() - before:.1f} CPU s")
    for name, work, rows in (("signatures", signatures, BLOCK), ("verification", verification, BATCH)):
        local, ray = (work(compute, batches).cost() for compute in (LocalCompute(), RayCompute(max_workers=CORES)))
        for kind, cost in (("LocalCompute", local), ("RayCompute", ray)):
            print(f"{name}, {kind}: {1e6 * cost / rows:.1f} CPU microseconds a row")
        print(f"{name}: RayCompute {ray / local:.2f} x LocalCompute", flush=True)


class Sleeper(Worker[float, float]):
    """Sleeps, and says when it began to."""

    def __call__(self, batch: float) -> float:
        """Sleep for so many seconds."""
        began = time.time()
        time.sleep(batch)
        return began


def scaling(seconds: float = 0.5, batches_each: int = 40) -> None:
    """Print the efficiency with 1 to 8 workers."""
    for workers in (1, 2, 4, 8):
        compute = RayCompute(max_workers=workers)
        batches = (seconds for _ in range(batches_each * workers))
        began = []
        for outcome in compute.map_batches(batches, Sleeper, name="sleep", demand=Demand(cpus=0.1), ordered=False):
            began.append((outcome.worker, outcome.value()))
        opened = max(min(when for worker, when in began if worker == each) for each, _ in began)
        ended = max(when for _, when in began) + seconds
        busy = sum(max(0.0, when + seconds - max(when, opened)) for _, when in began if when >= opened)
        print(f"{workers} workers: efficiency {busy / (workers * (ended - opened)):.3f}")


class Echo(Worker[pl.DataFrame, pl.DataFrame]):
    """Gives the rows back with a hash."""

    def __call__(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Add a column."""
        return batch.with_columns(hash=pl.col("text").hash())


def memory(rows: int, batch: int = 25_000) -> None:
    """Print the driver's peak before and after the rows."""
    numbers = pl.int_range(batch, eager=True)

    def batches() -> Iterator[pl.DataFrame]:
        for start in range(0, rows, batch):
            yield pl.DataFrame({"row": numbers + start}).with_columns(text=pl.format("a query of some words {}", "row"))

    before, done = peak(), 0
    compute, first = RayCompute(max_workers=CORES), 0
    for outcome in compute.map_batches(batches(), Echo, name="rows", rows=rows, log=print):
        done += outcome.value().height
        first = first or (peak() if done >= rows // 10 else 0)
    print(f"{done:,} rows: driver at most {peak():.0f} MB ({before:.0f} before, {first:.0f} after a tenth of the rows)")


def peak() -> float:
    """Return the most memory that this process ever had, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "scaling", "memory"])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--batches", type=int, default=40)
    options = parser.parse_args()
    if options.what == "overhead":
        overhead(options.batches)
    elif options.what == "scaling":
        scaling()
    else:
        memory(options.rows)


if __name__ == "__main__":
    main()
