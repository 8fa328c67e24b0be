"""Ask a session for the responses that a chunk store does not have yet; used by responses and by evaluation.

store = ChunkStore(lake, directory, "response_id", GENERATED, settings)
report = generate_missing(session, store, requests, sampling, context.log.info)
rows = read_generated(store, requests, report)     # one row per request, columns of GENERATED
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import polars as pl

from deepdistill_resources.chunk_store import ChunkStore, FailedAttempt
from deepdistill_resources.engines.base import (
    FINAL_STATUSES,
    GenerationRequest,
    GenerationResponse,
    GenerationSession,
    SamplingParameters,
)
from deepdistill_resources.errors import EngineError

GENERATED: dict[str, pl.DataType] = {
    "response_id": pl.String(),  # the request's key
    "text": pl.String(),
    "status": pl.String(),
    "finish_reason": pl.String(),
    "prompt_tokens": pl.Int64(),
    "completion_tokens": pl.Int64(),
    "cumulative_logprob": pl.Float64(),
    "seed": pl.Int64(),
    "engine": pl.String(),  # name and version
    "started_at": pl.Datetime("us", "UTC"),
    "seconds": pl.Float64(),  # its share, by tokens, of the time the engine worked; they add up to that time
}
VOLATILE = ("started_at", "seconds")  # differ between equal runs
PROGRESS_SECONDS = 5.0
COMMIT_SECONDS = 60.0  # slow models commit smaller chunks, so that a kill never loses more work than this
MAX_FAILED_SHARE = 0.05
WINDOW = 4096  # requests handed to the session at once; bounds memory


def content_key(**parts: Any) -> str:
    """Return the key of a response: a hash of everything that its content may depend on.

    >>> content_key(query_id="q1", pass_index=0) == content_key(pass_index=0, query_id="q1")
    True
    """
    body = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(body.encode()).hexdigest()[:32]


def seed_of(key: str, run_seed: int = 0) -> int:
    """Return a response's seed (31 bits): made from its key, so independent of order, chunks and retries."""
    return int.from_bytes(hashlib.blake2b(f"{run_seed}:{key}".encode(), digest_size=4).digest()) >> 1


class LazySession(GenerationSession):
    """Loads the model (or reaches the server) when the first response is asked for, and not before."""

    def __init__(self, open_session: Callable[[], GenerationSession]) -> None:
        self._open = open_session

    @cached_property
    def _session(self) -> GenerationSession:
        session = self._open()
        self.engine_name, self.engine_version = session.engine_name, session.engine_version
        return session

    @property
    def opened(self) -> bool:
        """Whether it was needed."""
        return "_session" in self.__dict__

    @property
    def retries(self) -> Counter[str]:
        """See `GenerationSession.retries`."""
        return self._session.retries if self.opened else Counter()

    def generate(
        self, requests: Iterable[GenerationRequest], sampling: SamplingParameters
    ) -> Iterator[GenerationResponse]:
        """See `GenerationSession.generate`."""
        session = self._session
        try:
            yield from session.generate(requests, sampling)
        finally:
            self.busy_seconds = session.busy_seconds

    def perplexities(self, texts: list[str]) -> list[float | None]:
        """See `GenerationSession.perplexities`."""
        return self._session.perplexities(texts)

    def close(self) -> None:
        """Give back what the session holds, if there is one."""
        if self.opened:
            self._session.close()


@dataclass
class GenerationReport:
    """What one call did. Tokens and seconds are those of the new responses only."""

    requested: int
    reused: int
    generated: int = 0
    chunks_reused: int = 0
    chunks_new: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0  # of them the engine was at work, see `GenerationSession`
    retries: int = 0  # attempts made again, by the engine itself or here
    statuses: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)  # key -> last error, after all attempts

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of wall time."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    @property
    def share_of_engine_ceiling(self) -> float | None:
        """Its tokens per second divided by those of the engine's time at work; None where the engine does not tell."""
        return engine_share([self])


def generate_missing(
    session: GenerationSession,
    store: ChunkStore,
    requests: Sequence[GenerationRequest],
    sampling: SamplingParameters,
    log: Callable[[str], None],
    chunk_size: int = 64,
    max_attempts: int = 3,
    retry_seconds: float = 2.0,
    tolerant: bool = False,
) -> GenerationReport:
    """Generate the responses that `store` lacks and commit them in chunks as they finish.

    Responses with a transient failure are asked again, `max_attempts` times in all; they are never committed.

    Args:
        store: a store with schema `GENERATED` and key column `response_id`.
        log: gets a progress line every few seconds, also while no response finishes; called from a thread of its own.
        tolerant: the caller judges the failures of all its calls together (`require_few_failures`).

    Raises:
        EngineError: more than 5 % of the requests failed to the end; what is done stays committed.
    """
    by_key = {request.key: request for request in requests}
    missing = set(store.missing(by_key))
    wanted = [key for key in by_key if key in missing]  # passes of one query stay together: they share its prompt
    report = GenerationReport(requested=len(by_key), reused=len(by_key) - len(wanted))
    report.chunks_reused, busy_before = len(store.chunks()), session.busy_seconds
    work = _Work(session, store, report, chunk_size, len(wanted))
    with _every(PROGRESS_SECONDS, lambda: log(work.progress())):
        for attempt in range(1, max_attempts + 1):
            for start in range(0, len(wanted), WINDOW):
                work.run([by_key[key] for key in wanted[start : start + WINDOW]], sampling, attempt)
            wanted = sorted(report.failed)
            if not wanted or attempt == max_attempts:
                break
            work.asked_again += len(wanted)
            log(f"{len(wanted)} responses failed for the moment and are asked again: {report.failed[wanted[0]]}")
            time.sleep(retry_seconds * 2 ** (attempt - 1))
    report.retries = work.retries().total()
    report.seconds, report.busy_seconds = time.monotonic() - work.started, session.busy_seconds - busy_before
    if not tolerant:
        require_few_failures([report])
    return report


def engine_share(reports: Iterable[GenerationReport]) -> float | None:
    """Return the tokens per second of all calls divided by the engine's own (loading, retries, commits are not its).

    Both are of the same tokens, so it is the engine's time at work over all the time; None where it does not tell.
    """
    done = list(reports)
    busy, seconds = sum(report.busy_seconds for report in done), sum(report.seconds for report in done)
    return min(1.0, busy / seconds) if busy and seconds else None


def require_few_failures(reports: Iterable[GenerationReport], of: int | None = None) -> None:
    """Raise EngineError when more than 5 % of what was asked for failed to the end.

    Args:
        of: the most that can be asked for in all; given while there is more to ask, to stop when that is in vain.
    """
    done = list(reports)
    failed = {key: error for report in done for key, error in report.failed.items()}
    total = sum(report.requested for report in done) if of is None else of
    if len(failed) > MAX_FAILED_SHARE * total:
        raise EngineError(
            f"{len(failed)} of {total} responses failed; the last error: {next(iter(failed.values()))}",
            "run it again when the engine is well: only these responses are asked again.",
        )


def failed_rows(wanted: pl.Series, reports: Iterable[GenerationReport], run_seed: int) -> pl.DataFrame:
    """Return a `server_error` row (GENERATED) for each of the `wanted` keys that failed to the end."""
    failed = {key for report in reports for key in report.failed}
    rows = [
        {"response_id": key, "text": "", "status": "server_error", "finish_reason": "error"}
        | {"seed": seed_of(key, run_seed)}
        for key in wanted
        if key in failed
    ]
    return pl.DataFrame(rows, schema=GENERATED)


def read_generated(
    store: ChunkStore, requests: Sequence[GenerationRequest], report: GenerationReport | None = None
) -> pl.DataFrame:
    """Return one row (GENERATED) per request, sorted by key; those that failed to the end are `server_error` rows."""
    rows = store.read(request.key for request in requests)
    seeds = {request.key: request.seed for request in requests}
    failed = [
        {"response_id": key, "text": "", "status": "server_error", "finish_reason": "error", "seed": seeds[key]}
        for key in sorted(report.failed if report else ())
        if key in seeds
    ]
    return pl.concat([rows, pl.DataFrame(failed, schema=GENERATED)]).sort("response_id")


@contextmanager
def _every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` every few seconds, in a thread: an engine may be at work for an hour before a response is done."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=work, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Work:
    """The state of one call: what is buffered, what is done and what is left."""

    def __init__(
        self,
        session: GenerationSession,
        store: ChunkStore,
        report: GenerationReport,
        chunk_size: int,
        total: int,
    ) -> None:
        self.session, self.store, self.report = session, store, report
        self.chunk_size, self.total = chunk_size, total
        self.asked_again, self.retries_before = 0, session.retries
        self.rows: list[dict[str, Any]] = []
        self.worked = 0.0  # seconds of the engine since the last commit
        self.started = self.committed = self.last = time.monotonic()

    def run(self, requests: list[GenerationRequest], sampling: SamplingParameters, attempt: int) -> None:
        seeds = {request.key: request.seed for request in requests}
        attempts: list[FailedAttempt] = []
        self.last = time.monotonic()
        for response in self.session.generate(requests, sampling):
            if response.key not in seeds:
                continue  # a duplicated or foreign reply
            if response.status in FINAL_STATUSES:
                self._take(response, seeds.pop(response.key))
            else:
                self.report.failed[response.key] = response.error or response.status
                attempts.append(FailedAttempt(response.key, attempt, response.status, (response.error or "")[:500]))
        self._commit()
        self.store.log_attempts(attempts)
        self._note_unanswered(seeds)

    def _take(self, response: GenerationResponse, seed: int) -> None:
        now = time.monotonic()
        self.worked, self.last = self.worked + now - self.last, now
        self.rows.append(_row(response, seed, f"{self.session.engine_name} {self.session.engine_version}"))
        self.report.failed.pop(response.key, None)
        self.report.generated += 1
        self.report.statuses[response.status] += 1
        self.report.prompt_tokens += response.prompt_tokens
        self.report.completion_tokens += response.completion_tokens
        if len(self.rows) >= self.chunk_size or time.monotonic() - self.committed > COMMIT_SECONDS:
            self._commit()

    def _note_unanswered(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.report.failed.setdefault(key, "the engine gave no reply")

    def _commit(self) -> None:
        if self.rows:
            self.store.commit(_with_seconds(pl.DataFrame(self.rows, schema=GENERATED), self.worked))
            self.report.chunks_new += 1
            self.worked = 0.0
        self.rows, self.committed = [], time.monotonic()

    def retries(self) -> Counter[str]:
        """Return how often an attempt was made again, by reason."""
        return self.session.retries - self.retries_before + Counter({"asked again": self.asked_again})

    def progress(self) -> str:
        """Say how much is done, how fast, how long it will take, and what had to be repeated."""
        elapsed, done = time.monotonic() - self.started, self.report.generated
        parts = [f"{done:,} of {self.total:,} responses", f"{self.report.completion_tokens / elapsed:,.0f} tokens/s"]
        parts += [f"about {(self.total - done) * elapsed / done:,.0f} s left"] if done else []
        if retries := self.retries():
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in retries.most_common(3))
            parts.append(f"{retries.total():,} retries ({reasons})")
        parts += [f"{len(self.report.failed):,} failed so far"] if self.report.failed else []
        return ", ".join(parts)


def _with_seconds(rows: pl.DataFrame, seconds: float) -> pl.DataFrame:
    """Divide the engine's time among responses by their tokens: engines differ in what they can say of one."""
    weight = pl.col("completion_tokens").fill_null(0) + 1
    return rows.with_columns((weight / weight.sum() * seconds).alias("seconds"))


def _row(response: GenerationResponse, seed: int, engine: str) -> dict[str, Any]:
    return {
        "response_id": response.key,
        "text": response.text,
        "status": response.status,
        "finish_reason": response.finish_reason,
        "prompt_tokens": response.prompt_tokens,
        "completion_tokens": response.completion_tokens,
        "cumulative_logprob": response.cumulative_logprob,
        "seed": seed,
        "engine": engine,
        "started_at": datetime.fromtimestamp(time.time() - response.seconds, UTC),
        "seconds": response.seconds,
    }
