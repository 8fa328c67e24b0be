"""Generation on the workers of a cluster: each holds a session and commits its chunks itself; the driver reads counts.

vLLM runs in a worker of ours, not in ray.data.llm, whose engine is as fast (0.985 of its tokens per second,
docs/benchmarks.md): that hands whole batches on for others to write, so a lost node would cost all it has in flight, it
gives a batch that ends the engine to a new engine without end, and it knows no other engine.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.compute import Compute, Demand, Log, Outcome, Worker
from deepdistill_resources.engines.base import GenerationRequest, GenerationSession, SamplingParameters
from deepdistill_resources.generation import GENERATED, GenerationReport, LazySession, generate_missing
from deepdistill_resources.lake import Lake

Batch = tuple[SamplingParameters, list[GenerationRequest]]
BATCHES_PER_WORKER = 4  # at least, so that all workers end at about the same time
LARGEST_BATCH = 4096  # requests; keeps an engine full, bounds memory


@dataclass(frozen=True)
class StorePlace:
    """Where a chunk store of generated responses lies, and the settings it was opened with."""

    lake: Lake
    directory: str
    settings: Mapping[str, Any]

    def open(self) -> ChunkStore:
        """Open the store."""
        return ChunkStore(self.lake, self.directory, "response_id", GENERATED, self.settings)


@dataclass(frozen=True)
class SpreadGeneration:
    """Sessions on all workers that a cluster has room for.

    Args:
        open_session: loads the model where it is called; importable by name.
        demand: what one session needs of its node.
        chunk_size: responses per committed chunk.
    """

    compute: Compute
    open_session: Callable[[], GenerationSession]
    demand: Demand
    place: StorePlace
    chunk_size: int

    def generate(self, store: ChunkStore, wanted: Iterable[Batch], total: int, log: Log) -> Iterator[GenerationReport]:
        """Yield a report per batch, in any order; batches that no worker survived are reported as failed.

        The first report counts what `store` has already; it grows until the last one.

        Args:
            store: the driver's view of the workers' store.
            wanted: pulled as workers need them.
            total: how many there are about, to divide them well.

        Raises:
            DeepDistillError: what a worker raised, for example that the weights changed.
        """
        known = GenerationReport(0, 0, chunks_reused=len(store.chunks()))
        yield known
        pending: dict[int, list[str]] = {}
        batches = self._missing(store, wanted, self._batch_size(total), known, pending)
        opening = _Opening(self.open_session, self.place, self.chunk_size)
        for outcome in self.compute.map_batches(
            batches, opening, name="responses", demand=self.demand, ordered=False, log=log
        ):
            yield self._report(outcome, pending.pop(outcome.index))
        store.refresh()

    def _missing(
        self,
        store: ChunkStore,
        wanted: Iterable[Batch],
        size: int,
        known: GenerationReport,
        pending: dict[int, list[str]],
    ) -> Iterator["_Share"]:
        numbers = count()
        for sampling, requests in wanted:
            missing = set(store.missing(request.key for request in requests))
            lacking = [request for request in requests if request.key in missing]
            known.requested += len(requests) - len(lacking)
            known.reused += len(requests) - len(lacking)
            for start in range(0, len(lacking), size):
                batch = lacking[start : start + size]
                pending[next(numbers)] = [request.key for request in batch]
                yield _Share(sampling, batch)

    def _batch_size(self, total: int) -> int:
        share = -(-total // (BATCHES_PER_WORKER * self.compute.workers(self.demand)))
        return min(LARGEST_BATCH, max(share, self.chunk_size))

    def _report(self, outcome: Outcome[GenerationReport], keys: list[str]) -> GenerationReport:
        if outcome.failure is None:
            return outcome.value()
        lost = self.place.open().missing(keys)
        return GenerationReport(len(keys), len(keys) - len(lost), failed=dict.fromkeys(lost, outcome.failure))


@dataclass(frozen=True)
class _Share:
    """What one worker is asked for at once."""

    sampling: SamplingParameters
    requests: list[GenerationRequest]

    def __len__(self) -> int:
        return len(self.requests)


@dataclass(frozen=True)
class _Opening:
    open_session: Callable[[], GenerationSession]
    place: StorePlace
    chunk_size: int

    def __call__(self) -> "_Generator":
        return _Generator(self)


class _Generator(Worker[_Share, GenerationReport]):
    """One session and its own view of the store; what a lost worker had committed is not asked again."""

    def __init__(self, opening: _Opening) -> None:
        self.session = LazySession(opening.open_session)
        self.store, self.chunk_size = opening.place.open(), opening.chunk_size

    def __call__(self, batch: _Share) -> GenerationReport:
        return generate_missing(
            self.session, self.store, batch.requests, batch.sampling, lambda _: None, self.chunk_size, tolerant=True
        )

    def close(self) -> None:
        self.session.close()
