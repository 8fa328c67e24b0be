"""One teacher's responses to one source: what came with it, then waves of generation with the verifier between."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from deepdistill_assets.recipe import Recipe, fingerprint
from deepdistill_assets.responses.acceptance import ACCEPTED, HOPELESS, UNRESOLVED, Acceptance
from deepdistill_assets.responses.imported import existing_of, imported_rows
from deepdistill_assets.responses.plan import Requests, response_plan, response_rows
from deepdistill_assets.responses.query_blocks import QueryBlocks
from deepdistill_assets.tables import RESPONSE
from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.engines.base import GenerationSession
from deepdistill_resources.errors import DeepDistillError
from deepdistill_resources.generation import GenerationReport, failed_rows, generate_missing, require_few_failures
from deepdistill_resources.spread_generation import Batch, SpreadGeneration
from deepdistill_resources.stage_result import TableParts

WINDOW = 16_384  # responses that are planned, asked for and written at a time: what memory holds


@dataclass(frozen=True)
class Pair:
    """A source and a teacher; `revision` is the teacher model's."""

    recipe: Recipe
    source: str
    teacher: str
    revision: str

    @property
    def stops_early(self) -> bool:
        """Whether asking ends at the first accepted response."""
        return self.recipe.responses.kind == "until_passed"

    @property
    def keeps_accepted(self) -> bool:
        """Whether a query with an accepted existing response is not asked."""
        return self.recipe.teachers[self.teacher].existing_responses == "accept"

    def waves(self) -> list[range]:
        """Return the passes of each wave."""
        if self.recipe.imported(self.teacher):
            return []
        passes = range(self.recipe.teachers[self.teacher].passes)
        return [range(index, index + 1) for index in passes] if self.stops_early else [passes]


@dataclass
class Outcome:
    """RESPONSE rows in files, the reports of what was asked, and why queries were not asked further."""

    rows: TableParts = field(default_factory=lambda: TableParts(RESPONSE))
    reports: list[GenerationReport] = field(default_factory=list)
    closed: dict[str, int] = field(default_factory=dict)  # outcome -> queries that were not asked (further)


@dataclass
class Distillation:
    """All responses of one pair; memory holds the ids of the queries and one window of texts.

    Args:
        queries: QUERY rows of the source.
        existing: EXISTING_RESPONSE rows of the source.
        session: the teacher; nothing is asked of it where the store has all that is wanted.
        store: the generated responses, schema `GENERATED`.
        spread: generates in place of `session`, on the workers of a cluster.
        acceptance: the verifier; asked only where the recipe lets an accepted response end the asking.
    """

    pair: Pair
    queries: QueryBlocks
    existing: pl.LazyFrame
    session: GenerationSession
    store: ChunkStore
    acceptance: Acceptance
    log: Callable[[str], None]
    spread: SpreadGeneration | None = None

    def run(self) -> Outcome:
        """Return every response: imported ones, then generated ones by query and pass."""
        self._outcome, self._imported = Outcome(), dict[str, list[int]]()
        self._closed: dict[str, int] = {}  # query -> the wave from which on it was not asked
        if self.pair.recipe.reads_existing(self.pair.teacher):
            self._import()
        waves = self.pair.waves()
        for number, wave in enumerate(waves):
            self._ask(number, wave, judge=self.pair.stops_early and number + 1 < len(waves))
            if self.pair.stops_early:
                left = f"{self._height - len(self._closed):,} of {self._height:,} queries"
                self.log(f"wave {number + 1} of at most {len(waves)} done, {left} are still open")
        if waves:
            require_few_failures(self._outcome.reports)
            self._require_resolved()
            self._write()
        return self._outcome

    @property
    def _height(self) -> int:
        return self.queries.ids.height

    def _require_resolved(self) -> None:
        """Raise where the verifier failed for too many queries: they would keep the few passes they have."""
        failed, most = self._outcome.closed.get(UNRESOLVED, 0), self.pair.recipe.verification.max_infra_error_share
        if failed > most * self._height:
            raise DeepDistillError(
                f"the verifier failed for {failed:,} of {self._height:,} queries (at most {most:.1%} allowed).",
                "mend the sandbox or judge and materialize again; what was generated and verified is kept.",
            )

    def _import(self) -> None:
        """Take in what came with the source; an accepted one ends the asking, where the recipe says so."""
        limit = None if self.pair.keeps_accepted else self.pair.recipe.teachers[self.pair.teacher].passes
        for found in existing_of(self.existing, self.queries.ids, self.pair.teacher, limit):
            rows = imported_rows(found, self.pair.teacher, self.pair.revision)
            self._outcome.rows.add(rows)
            for query_id, index in rows.select("query_id", "pass_index").iter_rows():
                self._imported.setdefault(query_id, []).append(index)
            if self.pair.keeps_accepted or self.pair.stops_early:
                queries = self.queries.of(rows["query_id"])
                self._close(0, (ACCEPTED, UNRESOLVED), self.acceptance.outcomes(rows, queries, self.log))

    def _close(self, wave: int, kinds: Sequence[str], found: pl.DataFrame) -> None:
        """From a wave on, ask no further for queries one of whose responses had an outcome of these kinds."""
        for kind in kinds:
            ids = set(found.filter(pl.col("outcome") == kind)["query_id"]) - self._closed.keys()
            self._outcome.closed[kind] = self._outcome.closed.get(kind, 0) + len(ids)
            self._closed |= dict.fromkeys(ids, wave)

    def _ask(self, number: int, wave: range, judge: bool) -> None:
        """Generate one wave for all open queries; `judge`: let the verifier say which of them go on."""
        closed, most = set(self._closed), self._height * self._passes
        for report in self._reports(wave, closed):
            self._outcome.reports.append(report)
            require_few_failures(self._outcome.reports, of=most)
        if judge:
            for window in self.queries.windows(_queries_at_once(len(wave)), without=closed):
                found = self.acceptance.outcomes(self._rows(self._plan(window, wave)[1]), window, self.log)
                self._close(number + 1, (ACCEPTED, HOPELESS, UNRESOLVED), found)

    def _reports(self, wave: range, closed: set[str]) -> Iterator[GenerationReport]:
        """Ask, here or by the workers of a cluster, and yield what came of it."""
        if self.spread is not None:
            total = (self._height - len(closed)) * len(wave)
            yield from self.spread.generate(self.store, self._wanted(wave, closed), total, self.log)
            return
        chunk_size = self.pair.recipe.responses.chunk_size
        for sampling, requests in self._wanted(wave, closed):
            yield generate_missing(self.session, self.store, requests, sampling, self.log, chunk_size, tolerant=True)

    def _wanted(self, wave: range, closed: set[str]) -> Iterator[Batch]:
        done, open_ones, started = 0, self._height - len(closed), time.monotonic()
        for window in self.queries.windows(_queries_at_once(len(wave)), without=closed):
            if done:
                seconds = (time.monotonic() - started) * (open_ones - done) / done
                self.log(f"{done:,} of {open_ones:,} queries of this wave done, about {seconds:,.0f} s left")
            done += window.height
            yield from self._plan(window, wave)[0].items()

    @property
    def _passes(self) -> int:
        return self.pair.recipe.teachers[self.pair.teacher].passes

    def _plan(self, queries: pl.DataFrame, wave: range) -> tuple[Requests, pl.DataFrame]:
        return response_plan(queries, self.pair.teacher, self.pair.revision, self.pair.recipe, wave, self._imported)

    def _write(self) -> None:
        """Write what this run's waves asked for: what else a lake's history left in the store is not of this run."""
        for window in self.queries.windows(_queries_at_once(self._passes)):
            plans = []
            for number, wave in enumerate(self.pair.waves()):
                closed = [query for query in window["query_id"] if self._closed.get(query, number + 1) <= number]
                plans.append(self._plan(window.filter(~pl.col("query_id").is_in(closed)), wave)[1])
            self._outcome.rows.add(self._rows(pl.concat(plans)))

    def _rows(self, plan: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of a plan that were asked for: stored ones, and those that failed to the end."""
        pair, teacher = self.pair, self.pair.recipe.teachers[self.pair.teacher]
        stored = self.store.read(plan["response_id"])
        failed = failed_rows(plan["response_id"], self._outcome.reports, pair.recipe.seed)
        style = fingerprint([teacher.style.fingerprint(), teacher.sampling.model_dump(mode="json")])
        rows = pl.concat([stored, failed.join(stored, on="response_id", how="anti")])
        return response_rows(rows, plan, pair.source, pair.teacher, pair.revision, style, teacher.response_source)


def _queries_at_once(passes: int) -> int:
    return max(1, WINDOW // passes)
