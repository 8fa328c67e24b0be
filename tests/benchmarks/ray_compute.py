"""`RayCompute` beside `LocalCompute`: overhead on the same cores, scaling of slow work, memory of the driver.

    python tests/benchmarks/ray_compute.py overhead [--batches 40] [--work signatures cheap full]
    python tests/benchmarks/ray_compute.py scaling
    python tests/benchmarks/ray_compute.py memory [--rows 10000000]

overhead: two workers of Ray against one process that uses both cores inside (threads of kernels, two processes of the
verifier), rows through the driver as in the assets. CPU and wall seconds a batch from half of the batches on, so
that the start of cluster and workers is left out, and of the processes at work: driver, workers and what they start.
Ray's own processes are stated beside, and the start of the cluster. Verification is `cheap` where 960 answers repeat,
and `full` where every answer differs and a fifth is algebra.
scaling: batches that sleep, so that any number of workers fits on this machine; efficiency is the ideal time over the
time, once all workers are open.
memory: the most that the driver held while all rows went to the workers and back.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
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


def cpu_seconds() -> tuple[float, float]:
    """Return the CPU seconds of the processes at work, and of Ray's own; ended children are in their parents'."""
    own = psutil.Process()
    everyone = {own, *own.children(recursive=True)}
    parts = {child for child in own.children() if any("/ray/" in word for word in child.cmdline())}
    rays = parts | {each for part in parts for each in part.children(recursive=True)}
    hosts = {each for each in rays if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::_Host")}
    rays -= hosts | {each for host in hosts for each in host.children(recursive=True)}
    at_work, idle = (sum(sum(each.cpu_times()[:4]) for each in group) for group in (everyone - rays, rays))
    return at_work, idle


class Meter:
    """CPU and wall seconds between two moments of an iteration, with equally much on its way at both."""

    def __init__(self, batches: int) -> None:
        self.marks: dict[int, np.ndarray] = {}
        self.first, self.last = batches // 2, batches - 8

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and look at the clocks on the way."""
        for index, item in enumerate(items):
            if index in (self.first, self.last):
                self.marks[index] = np.array([*cpu_seconds(), time.monotonic()])
            yield item

    def cost(self) -> np.ndarray:
        """Return CPU seconds at work, of Ray itself, and wall seconds, a batch."""
        return (self.marks[self.last] - self.marks[self.first]) / (self.last - self.first)


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
    pl.concat(
        query_signatures(
            conform(frame, QUERY).lazy(),
            100,
            Deduplication(),
            None,
            lambda work, blocks: meter(compute.apply(work, blocks, name="signatures")),
        )
    )
    return meter


def verification(compute: Compute, batches: int, distinct: bool) -> Meter:
    """Verify math responses, and keep the verdicts."""
    meter, wanted = Meter(batches), list[VerificationRequest]()
    seeds = itertools.count(1) if distinct else itertools.repeat(1)
    pairs = (
        (reference, answer) for seed in seeds for reference, answers in problems(True, seed, True) for answer in answers
    )
    for index, (reference, answer) in enumerate(itertools.islice(pairs, batches * BATCH)):
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


WORK = {
    "signatures": (signatures, BLOCK),
    "cheap": (partial(verification, distinct=False), BATCH),
    "full": (partial(verification, distinct=True), BATCH),
}


def overhead(names: list[str], batches: int) -> None:
    """Print CPU and wall seconds of both, and their ratios."""
    started, before = time.monotonic(), sum(cpu_seconds())
    connect()
    print(f"start of the cluster: {time.monotonic() - started:.1f} s, {sum(cpu_seconds()) - before:.1f} CPU s")
    for name in names:
        work, rows = WORK[name]
        local, ray = (work(compute, batches).cost() for compute in (LocalCompute(), RayCompute(max_workers=CORES)))
        for kind, cost in (("LocalCompute", local), ("RayCompute", ray)):
            at_work, idle, wall = 1e6 * cost / rows
            print(f"{name}, {kind}: {at_work:.1f} CPU us a row, Ray's own {idle:.1f}, {wall:.1f} us wall")
        print(f"{name}: RayCompute {ray[0] / local[0]:.2f} x the CPU, {ray[2] / local[2]:.2f} x the time", flush=True)


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
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    options = parser.parse_args()
    if options.what == "overhead":
        overhead(options.work, options.batches)
    elif options.what == "scaling":
        scaling()
    else:
        memory(options.rows)


if __name__ == "__main__":
    main()
