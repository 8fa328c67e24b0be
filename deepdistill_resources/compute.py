"""Map over batches with stateful workers: in this process, or on a Ray cluster. Nobody else knows that Ray exists.

Not Ray Data's `map_batches`: it cannot pull from an iterator of the driver, and it gives a batch that kills its worker
to one worker after the other for ever. A pool of Ray's actors does it right, in bounded memory.
"""

import itertools
import logging
import os
import socket
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Generic, TypeVar

import dagster as dg

from deepdistill_resources.errors import ComputeError, DeepDistillError, MissingPackageError

T = TypeVar("T")
R = TypeVar("R")
Log = Callable[[str], None]

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_LOOKS = 2.0  # at what the cluster has
SECONDS_TO_CLOSE = 20.0
SECONDS_TO_REACH = 10.0
BATCHES_PER_WORKER = 2  # at most: one at work, one on its way
HELD_PER_WORKER = 4  # batches or results that the driver holds
SAME_EVERYWHERE = "install this project and the same locked packages on every node, and start Ray from there."


class Worker(ABC, Generic[T, R]):
    """Does the work of many batches; what it opens (a sandbox, a model, the lake) it opens where it lives."""

    @abstractmethod
    def __call__(self, batch: T) -> R:
        """Return the result of one batch; a DeepDistillError ends the map, another exception fails the batch."""

    def facts(self) -> dict[str, Any]:
        """Return what a reader wants to know of this worker so far; plain values."""
        return {}

    def close(self) -> None:
        """Give back what was opened."""


@dataclass(frozen=True)
class Demand:
    """What one worker needs of its node."""

    cpus: float = 1.0
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one batch.

    Args:
        index: its place among the batches, from 0.
        result: what the worker returned; None when it failed.
        failure: why there is no result, one line.
        worker: name of the worker that did it, unique in this process.
        node: where that worker lives.
        facts: that worker's facts right after this batch.
    """

    index: int
    result: R | None = None
    failure: str | None = None
    worker: str = ""
    node: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def value(self) -> R:
        """Return the result; raises ComputeError when the batch failed."""
        if self.failure is not None:
            raise ComputeError(f"batch {self.index} failed: {self.failure}")
        return self.result  # type: ignore[return-value]  # a worker may well return None


class Compute(dg.ConfigurableResource, ABC):
    """Where the work of a partition is done."""

    @abstractmethod
    def map_batches(
        self,
        batches: Iterable[T],
        open_worker: Callable[[], Worker[T, R]],
        *,
        name: str,
        demand: Demand = Demand(),
        ordered: bool = True,
        rows: int | None = None,
        log: Log | None = None,
    ) -> Iterator[Outcome[R]]:
        """Yield one outcome per batch, as they are pulled; memory holds a few batches per worker.

        Args:
            batches: any values; those for heavy data say where it lies, so that workers read it themselves.
            open_worker: makes a worker on its node: a class, or a frozen dataclass of plain values and resources, that
                can be imported there.
            name: of the work, for log lines.
            demand: what one worker needs.
            ordered: whether outcomes come in the order of the batches, or as soon as they are there.
            rows: how many there are, where that is known.
            log: told every few seconds how many rows are done.

        Raises:
            DeepDistillError: what a worker raised, or no worker can be had.
        """

    def apply(
        self, function: Callable[[T], R], batches: Iterable[T], *, name: str, log: Log | None = None
    ) -> Iterator[R]:
        """Yield `function` of each batch, in order; raises ComputeError where it failed.

        Args:
            function: that can be imported on every node, or a partial of one.
        """
        for outcome in self.map_batches(batches, partial(_Stateless, function), name=name, log=log):
            yield outcome.value()

    def workers(self, demand: Demand = Demand()) -> int:
        """Return how many workers are at work at once."""
        return 1

    def cores(self, demand: Demand = Demand()) -> int:
        """Return how many processes or threads one worker may use inside."""
        return len(os.sched_getaffinity(0))

    def facts(self) -> dict[str, Any]:
        """Return what a reader wants to know of where the work was done."""
        return {}

    def probe(self) -> str:
        """Try it; returns what it is made of, raises DeepDistillError with a fix."""
        return "in this process"

    def spreads(self) -> bool:
        """Return whether workers live elsewhere, so that several hold what would be held once here, a model say."""
        return False


class LocalCompute(Compute):
    """One worker in this process: what it calls uses all cores inside."""

    def map_batches(
        self,
        batches: Iterable[T],
        open_worker: Callable[[], Worker[T, R]],
        *,
        name: str,
        demand: Demand = Demand(),
        ordered: bool = True,
        rows: int | None = None,
        log: Log | None = None,
    ) -> Iterator[Outcome[R]]:
        """Yield the outcomes; the worker is opened when the first batch comes."""
        progress, host, worker = _Progress(name, rows, log), _Host(), str(next(_names))
        try:
            for index, batch in enumerate(batches):
                host.open(open_worker).check()
                outcome: Outcome[R] = host.work(batch).check().outcome(index, worker)
                progress.add(_rows(batch))
                yield outcome
        finally:
            host.close()
        progress.end()


class RayCompute(Compute):
    """Workers on all nodes of a Ray cluster, as many as it has room for; nodes may come and go.

    A worker that dies costs its batch in flight, which another worker does again.

    Args:
        address: `host:port` of the cluster's head or `ray://host:port`; None: a cluster on this machine, which lives as
            long as this process.
        max_workers: at most so many at once; 0: what the cluster has room for. An autoscaler is asked for them.
        max_attempts: a batch whose workers died so often fails.
        patience_seconds: how long to wait for a first worker.
    """

    address: str | None = None
    max_workers: int = 0
    max_attempts: int = 3
    patience_seconds: float = 300.0

    def map_batches(
        self,
        batches: Iterable[T],
        open_worker: Callable[[], Worker[T, R]],
        *,
        name: str,
        demand: Demand = Demand(),
        ordered: bool = True,
        rows: int | None = None,
        log: Log | None = None,
    ) -> Iterator[Outcome[R]]:
        """Yield the outcomes; workers start when the first batch comes. Arrays in a result are read-only."""
        pool = _ActorPool(self, open_worker, demand, log)
        progress = _Progress(name, rows, log)
        try:
            for done, outcome in pool.run(iter(batches), ordered):
                progress.add(done)
                yield outcome
            pool.close()
        finally:
            pool.kill()
        progress.end()

    def workers(self, demand: Demand = Demand()) -> int:
        """Return how many workers the cluster has room for now."""
        return self.max_workers or max(1, _room(_nodes(connect(self.address)), demand))

    def cores(self, demand: Demand = Demand()) -> int:
        """Return how many processes or threads one worker may use inside."""
        return max(1, int(demand.cpus))

    def facts(self) -> dict[str, Any]:
        """Return nodes, CPUs and GPUs of the cluster, and its dashboard's address."""
        nodes = _nodes(connect(self.address))
        total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
        found = {"ray_nodes": len(nodes), "ray_cpus": total["CPU"], "ray_gpus": total["GPU"]}
        return found | ({"ray_dashboard": _dashboard} if _dashboard else {})

    def probe(self) -> str:
        """Let one worker answer."""
        quick = self.model_copy(update={"patience_seconds": min(60.0, self.patience_seconds)})
        said = list(quick.apply(str.strip, ["all is well"], name="probe"))
        found = self.facts()
        text = f"Ray {connect(self.address).__version__}, a worker answers {said[0]!r}, {found['ray_nodes']} nodes"
        text += f", {found['ray_cpus']:g} CPUs, {found['ray_gpus']:g} GPUs"
        return text + (f", dashboard {_dashboard}" if _dashboard else "")

    def spreads(self) -> bool:
        """Return True: workers live on the nodes of the cluster."""
        return True


class _Stateless(Worker[T, R]):
    """A function as a worker."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function

    def __call__(self, batch: T) -> R:
        return self.function(batch)


_names = itertools.count()  # of workers
_dashboard: str | None = None


def connect(address: str | None = None, log: Log | None = None) -> ModuleType:
    """Return Ray, connected: to `address`, or to a cluster started on this machine; once per process, until its end.

    Raises:
        MissingPackageError: Ray is not installed.
        ComputeError: no cluster at that address, or one of another version.
    """
    global _dashboard
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "Ray is not installed.", "install the extra `ray`: pip install -e '.[ray]'."
        ) from error
    if not ray.is_initialized():
        where = address or "local"
        try:
            if address:  # a head that is not there would end this process, without a word
                _reach(address)
            context = ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except Exception as error:  # it raises whatever it likes
            raise _unconnected(where, error) from error
        _dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
        if log:
            log(f"Ray {ray.__version__}: {address or 'started here'}, dashboard {_dashboard or 'off'}")
    return ray


def _reach(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), SECONDS_TO_REACH).close()


def _unconnected(address: str, error: Exception) -> ComputeError:
    reason = " ".join(str(error).split())
    if "ersion mismatch" in reason or "versions differ" in reason:
        return ComputeError(f"the Ray cluster at {address} has other versions: {reason}", SAME_EVERYWHERE)
    return ComputeError(
        f"no Ray cluster at {address}: {type(error).__name__}: {reason[:300]}",
        "start it (`ray start --head`) or mend DEEPDISTILL_RAY_ADDRESS; this machine must be one of its nodes, or the "
        "address begins with ray://.",
    )


def _nodes(ray: ModuleType) -> list[dict[str, float]]:
    """Return the resources of every living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(nodes: list[dict[str, float]], demand: Demand) -> int:
    """Return how many workers fit on these nodes."""
    wanted = {name: amount for name, amount in (("CPU", demand.cpus), ("GPU", demand.gpus)) if amount}
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in wanted.items()) + 1e-9) for node in nodes)


@dataclass
class _Reply:
    """What a host answers; errors are values, so that they come through whole."""

    result: Any = None
    error: DeepDistillError | None = None
    failure: str | None = None
    node: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def check(self) -> "_Reply":
        if self.error is not None:
            raise self.error
        return self

    def outcome(self, index: int, worker: str) -> Outcome[Any]:
        return Outcome(index, self.result, self.failure, worker, self.node, self.facts)


class _Host:
    """Holds one worker, in this process or as a Ray actor."""

    def __init__(self) -> None:
        self.worker: Worker[Any, Any] | None = None

    def place(self) -> str:
        """Return where this is, as soon as it is there."""
        return socket.gethostname()

    def open(self, open_worker: Callable[[], Worker[Any, Any]]) -> _Reply:
        """Open the worker unless it is open."""
        if self.worker is not None:
            return _Reply()
        try:
            self.worker = open_worker()
        except DeepDistillError as error:
            return _Reply(error=error)
        except Exception as error:  # noqa: BLE001 - nobody else can say why
            return _Reply(error=ComputeError(f"a worker cannot start: {_one_line(error)}"))
        return _Reply()

    def work(self, batch: Any) -> _Reply:
        """Do one batch."""
        assert self.worker is not None
        try:
            result = self.worker(batch)
            return _Reply(result, node=socket.gethostname(), facts=self.worker.facts())
        except DeepDistillError as error:
            return _Reply(error=error)
        except MemoryError:  # says nothing of the batch
            raise
        except Exception as error:  # noqa: BLE001 - a failure row, whatever it is
            return _Reply(failure=_one_line(error), node=socket.gethostname())

    def close(self) -> None:
        """Close the worker."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def _one_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({frame.filename}:{frame.lineno} in {frame.name})"


@dataclass
class _Job:
    """A batch on its way, and in the end its outcome."""

    index: int
    batch: Any
    rows: int
    attempts: int = 0
    outcome: Outcome[Any] | None = None

    def end(self, outcome: Outcome[Any]) -> None:
        self.outcome, self.batch = outcome, None


class _Actor:
    """One Ray actor and what it was asked, in order: its place, to open, then jobs."""

    def __init__(self, remote: Any, name: str, open_worker: Callable[[], Worker[Any, Any]]) -> None:
        self.name, self.remote, self.started = name, remote, time.monotonic()
        self.asked: deque[tuple[Any, _Job | str]] = deque(
            [(remote.place.remote(), "place"), (remote.open.remote(open_worker), "open")]
        )
        self.placed = self.opened = False

    @property
    def jobs(self) -> list[_Job]:
        return [what for _, what in self.asked if isinstance(what, _Job)]

    def give(self, job: _Job) -> None:
        self.asked.append((self.remote.work.remote(job.batch), job))


class _ActorPool:
    """The workers of one map on a Ray cluster."""

    def __init__(
        self, compute: RayCompute, open_worker: Callable[[], Worker[Any, Any]], demand: Demand, log: Log | None
    ) -> None:
        self.compute, self.demand, self.log, self.open_worker = compute, demand, log, open_worker
        self.actors: list[_Actor] = []
        self.waiting: deque[_Job] = deque()
        self.failed_starts = self.target = 0
        self.looked = 0.0

    def run(self, batches: Iterator[Any], ordered: bool) -> Iterator[tuple[int, Outcome[Any]]]:
        """Yield the rows and the outcome of every batch."""
        source = (_Job(index, batch, _rows(batch)) for index, batch in enumerate(batches))
        held: deque[_Job] = deque()  # pulled and not yielded, in order
        more = True
        while True:
            while more and len(held) < HELD_PER_WORKER * self._target():
                job = next(source, None)
                more = job is not None
                if job is not None:
                    held.append(job)
                    self.waiting.append(job)
            if not held:
                return
            self._staff(sum(job.outcome is None for job in held))
            self._hand_out()
            self._hear()
            for job in list(held):
                if job.outcome is not None:
                    held.remove(job)
                    yield job.rows, job.outcome
                elif ordered:
                    break

    def _target(self) -> int:
        now = time.monotonic()
        if now - self.looked > SECONDS_BETWEEN_LOOKS:
            self.target, self.looked = self.compute.workers(self.demand), now
        return self.target

    def _staff(self, unfinished: int) -> None:
        """Start workers, as many as there is work and room for."""
        ray = connect(self.compute.address, self.log)
        options = ray.remote(num_cpus=self.demand.cpus, num_gpus=self.demand.gpus, max_restarts=0, max_task_retries=0)
        while len(self.actors) < min(self._target(), unfinished):
            remote = options(_Host).options(scheduling_strategy="SPREAD").remote()
            self.actors.append(_Actor(remote, str(next(_names)), self.open_worker))

    def _hand_out(self) -> None:
        """Give each open worker a job, and a second one only when every worker has or will have a first."""
        for depth in range(BATCHES_PER_WORKER):
            idle = sum(not actor.jobs for actor in self.actors) if depth else 0
            for actor in self.actors:
                if actor.opened and len(actor.jobs) == depth and len(self.waiting) > idle:
                    actor.give(self.waiting.popleft())

    def _hear(self) -> None:
        """Wait for an answer and take in all that are there."""
        ray = connect(self.compute.address)
        first = {actor.asked[0][0]: actor for actor in self.actors if actor.asked}
        ready, _ = ray.wait(list(first), timeout=1.0)
        ready, _ = ray.wait(list(first), num_returns=len(first), timeout=0) if ready else ([], [])
        for reference in ready:
            self._take_in(ray, first[reference])
        if not any(actor.placed for actor in self.actors):
            self._lose_patience(ray)

    def _take_in(self, ray: ModuleType, actor: _Actor) -> None:
        reference, what = actor.asked[0]
        try:
            reply = ray.get(reference)
        except MemoryError as error:
            self._bury(ray, actor, _one_line(error))
            return
        except ray.exceptions.RayTaskError as error:  # what went over the wire cannot be read at its end
            reason = str(error).strip().splitlines()[-1]
            if not isinstance(what, _Job):
                raise ComputeError(f"a worker cannot start: {reason}", SAME_EVERYWHERE) from error
            reply = _Reply(failure=reason)
        except ray.exceptions.RayError as error:
            self._bury(ray, actor, " ".join(str(error).split())[:300])
            return
        actor.asked.popleft()
        if isinstance(what, _Job):
            what.end(reply.check().outcome(what.index, actor.name))
        elif what == "place":
            actor.placed = True
        else:
            reply.check()
            actor.opened, self.failed_starts = True, 0

    def _bury(self, ray: ModuleType, actor: _Actor, reason: str) -> None:
        """Take a dead worker's jobs back; only the first of them was at work."""
        ray.kill(actor.remote)
        self.actors.remove(actor)
        self.looked = 0.0  # its node may be gone
        jobs = actor.jobs
        if self.log:
            self.log(f"worker {actor.name} died ({reason}); its batch goes to another one")
        if not actor.opened:
            self.failed_starts += 1
            if self.failed_starts >= self.compute.max_attempts:
                raise ComputeError(f"workers die when they start: {reason}", "look at the logs of the Ray cluster.")
        elif jobs:
            jobs[0].attempts += 1
            if jobs[0].attempts >= self.compute.max_attempts:
                failed = jobs.pop(0)
                failure = f"{failed.attempts} workers died of it; the last one: {reason}"
                failed.end(Outcome(failed.index, failure=failure, worker=actor.name))
        self.waiting.extendleft(reversed(jobs))

    def _lose_patience(self, ray: ModuleType) -> None:
        waited = time.monotonic() - min(actor.started for actor in self.actors) if self.actors else 0.0
        if waited > self.compute.patience_seconds:
            raise ComputeError(
                f"the Ray cluster gave no worker with {self.demand} within {waited:.0f} s; its nodes: {_nodes(ray)}.",
                "add a node that has room for it, or end what holds it (`ray status`).",
            )

    def close(self) -> None:
        """Let the workers give back what they hold."""
        if not self.actors:
            return
        ray = connect(self.compute.address)
        closing = [actor.remote.close.remote() for actor in self.actors if actor.opened]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=SECONDS_TO_CLOSE)

    def kill(self) -> None:
        """End all workers; those of a connection that has ended are gone already."""
        if not self.actors:
            return
        import ray

        if ray.is_initialized():  # this may be called long after, when an abandoned iterator is collected
            for actor in self.actors:
                ray.kill(actor.remote)
        self.actors.clear()


def merged_facts(told: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the last facts of several workers as one: counts are summed; what differs is named by node.

    Args:
        told: node and facts of each worker.

    >>> merged_facts([("a", {"rows": 3, "tier": "x"}), ("b", {"rows": 2, "tier": "y"}), ("b", {"tier": "y"})])
    {'rows': 5, 'tier': 'a: x; b: y'}
    """
    values: dict[str, list[tuple[str, Any]]] = {}
    for node, facts in told:
        for name, value in facts.items():
            values.setdefault(name, []).append((node, value))
    return {name: _merged(pairs) for name, pairs in values.items()}


def _merged(pairs: list[tuple[str, Any]]) -> Any:
    first = pairs[0][1]
    if isinstance(first, int | float):
        return sum(value for _, value in pairs)
    if isinstance(first, dict):
        return {name: sum(value.get(name, 0) for _, value in pairs) for _, each in pairs for name in each}
    if all(value == first for _, value in pairs):
        return first
    return "; ".join(sorted({f"{node}: {value}" for node, value in pairs}))


class _Progress:
    """Says every few seconds how far the work is."""

    def __init__(self, name: str, total: int | None, log: Log | None) -> None:
        self.name, self.total, self.log = name, total, log
        self.started = self.said = time.monotonic()
        self.rows = 0

    def add(self, rows: int) -> None:
        self.rows += rows
        if time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            self._say()

    def end(self) -> None:
        if self.rows:
            self._say()

    def _say(self) -> None:
        if self.log:
            rate = self.rows / max(time.monotonic() - self.started, 1e-9)
            self.log(f"{self.name}: {self.rows:,}{self._of()} rows, {rate:,.0f} a second{self._left(rate)}")

    def _of(self) -> str:
        return "" if self.total is None else f" of {self.total:,}"

    def _left(self, rate: float) -> str:
        return "" if self.total is None else f", {(self.total - self.rows) / max(rate, 1e-9):,.0f} s left"


def _rows(batch: Any) -> int:
    return len(batch) if hasattr(batch, "__len__") else 1
