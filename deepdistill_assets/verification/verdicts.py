"""From responses and their queries to one verification row per response."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from deepdistill_assets.recipe import Verification
from deepdistill_assets.tables import JUDGE_DISAGREEMENT, VERIFICATION, conform
from deepdistill_resources.compute import Outcome, Worker, merged_facts
from deepdistill_resources.errors import DeepDistillError
from deepdistill_resources.lake import Lake
from deepdistill_resources.verifiers.base import Verdict, VerificationRequest, VerificationSettings, Verifier
from deepdistill_resources.verifiers.stored import VerdictStore
from deepdistill_resources.verifiers.suite import VerifierSuite

BATCH = 256
INFRA_ATTEMPTS = 2  # further attempts of this stage, beside those of the verifiers themselves
MAX_EVIDENCE_CHARACTERS = 4000
WITHOUT_RULE = ("multi_turn", "other")  # scored by a reward model, a judge or both
_NULLABLE = (
    "verify_score",
    "verify_score_normalised",
    "rule_verdict",
    "second_opinion",
    "judge",
    "judge_score",
)
_REQUEST_COLUMNS = ("response_id", "category", "text", "think", "answer", "status", "query_id")
_QUERY_COLUMNS = ("query_id", "query_text", "messages", "reference_answer", "options", "test_cases", "constraints")


class VerificationError(DeepDistillError):
    """Responses and queries do not belong together, or too much of the infrastructure failed; nothing is written."""


@dataclass(frozen=True)
class Run:
    """Verdicts of a partition, in the order of its responses; how many of them are new, and how long they took.

    `facts` is what the workers that made the new ones tell of themselves.
    """

    verdicts: list[Verdict]
    seconds: float
    new: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def per_second(self) -> float:
        """Return new verdicts per second."""
        return self.new / self.seconds if self.seconds > 0 else 0.0

    def infra_error_share(self) -> float:
        """Return the share of verdicts that are infrastructure errors."""
        errors = sum(verdict.verdict == "infra_error" for verdict in self.verdicts)
        return errors / len(self.verdicts) if self.verdicts else 0.0


def requests(responses: pl.DataFrame, queries: pl.DataFrame) -> list[VerificationRequest]:
    """Return one request per response, in order.

    Args:
        responses: columns of `tables.RESPONSE`.
        queries: columns of `tables.QUERY`; test_cases and constraints are JSON.

    Raises:
        VerificationError: a response without its query, or a response_id twice.
    """
    if responses["response_id"].n_unique() != responses.height:
        raise VerificationError("responses holds a response_id twice.", "materialize responses again.")
    joined = responses.select(_REQUEST_COLUMNS).join(
        queries.select(*_QUERY_COLUMNS, pl.lit(True).alias("known")), on="query_id", how="left", maintain_order="left"
    )
    orphans = joined.filter(pl.col("known").is_null())
    if orphans.height:
        raise VerificationError(
            f"{orphans.height} responses have no query in distillation_queries, e.g. {orphans['response_id'][0]}.",
            "materialize responses again: its queries have changed.",
        )
    return [VerificationRequest.of(row) for row in joined.iter_rows(named=True)]


class VerifyingWorker(Worker[list[VerificationRequest], list[Verdict]]):
    """A verifier that keeps its verdicts in the lake itself, batch by batch."""

    def __init__(self, verifier: Verifier, store: VerdictStore) -> None:
        self.verifier, self.store = verifier, store

    def __call__(self, batch: list[VerificationRequest]) -> list[Verdict]:
        """Return one verdict per request, in order."""
        found = self.verifier.verify(batch)
        self.store.keep(batch, found)
        return found

    def facts(self) -> dict[str, Any]:
        """Return the verifier's facts: sandbox tier, canaries, judge."""
        return self.verifier.facts()

    def close(self) -> None:
        """End the verifier's processes."""
        self.verifier.close()


@dataclass(frozen=True)
class OpenVerifier:
    """Opens verifiers and the store of one partition, wherever it is called."""

    suite: VerifierSuite
    lake: Lake
    settings: VerificationSettings
    partition: str

    def __call__(self) -> VerifyingWorker:
        """Return a worker; its sandbox tests itself when the first code comes."""
        verifier = self.suite.open(self.settings)
        return VerifyingWorker(verifier, self.store(verifier.identity()))

    def store(self, identity: Mapping[str, Any]) -> VerdictStore:
        """Return the store of what a verifier of this identity says."""
        return VerdictStore(self.lake, self.partition, self.settings, identity)


Verify = Callable[[Iterable[list[VerificationRequest]], int], Iterator[Outcome[list[Verdict]]]]


def verify(wanted: list[VerificationRequest], known: list[Verdict | None], verify_batches: Verify) -> Run:
    """Verify what is not known, in batches; infrastructure errors are tried again at the end.

    Args:
        known: the stored verdict of each request, None where there is none.
        verify_batches: gives the outcomes of batches of requests (of so many in all), in order.
    """
    started = time.monotonic()
    verdicts, facts = list(known), dict[str, tuple[str, dict[str, Any]]]()
    missing = [index for index, verdict in enumerate(verdicts) if verdict is None]
    again = missing
    for _ in range(1 + INFRA_ATTEMPTS):
        batches = [again[start : start + BATCH] for start in range(0, len(again), BATCH)]
        requests = ([wanted[index] for index in batch] for batch in batches)
        for batch, outcome in zip(batches, verify_batches(requests, len(again)), strict=True):
            found = outcome.result or [_lost(wanted[index], outcome.failure) for index in batch]
            for index, verdict in zip(batch, found, strict=True):
                verdicts[index] = verdict
            facts[outcome.worker] = (outcome.node, outcome.facts)
        again = [index for index in missing if getattr(verdicts[index], "verdict", None) == "infra_error"]
        if not again:
            break
    done = [verdict for verdict in verdicts if verdict is not None]
    return Run(done, time.monotonic() - started, len(missing), merged_facts(facts.values()))


def _lost(request: VerificationRequest, failure: str | None) -> Verdict:
    return Verdict(request.response_id, None, None, "infra_error", "worker", evidence={"reason": failure})


def require_working_infrastructure(run: Run, max_share: float) -> None:
    """Raise VerificationError when more than `max_share` of the verdicts are infrastructure errors."""
    share = run.infra_error_share()
    if share > max_share:
        example = next(verdict for verdict in run.verdicts if verdict.verdict == "infra_error")
        raise VerificationError(
            f"{share:.1%} of the verdicts are infrastructure errors (at most {max_share:.1%} allowed), "
            f"e.g. {example.verifier}: {example.evidence.get('reason') or example.evidence}.",
            "mend the sandbox or worker it names and materialize again; nothing was written.",
        )


@dataclass(frozen=True)
class Cutoffs:
    """What a score has to exceed, by category: verify_score on its own scale, and the judge's mark on 0-1 beside it."""

    scores: Mapping[str, float]
    judge_scores: Mapping[str, float] = field(default_factory=dict)


def cutoffs(part: Verification, verdicts: list[Verdict], responses: pl.DataFrame) -> Cutoffs:
    """Return the recipe's cut-offs; those that are quantiles are taken from these verdicts' scores."""
    found = pl.DataFrame(
        {
            "category": responses["category"],
            "score": [verdict.verify_score for verdict in verdicts],
            "mark": [verdict.judge_score for verdict in verdicts],
        },
        schema_overrides={"score": pl.Float64(), "mark": pl.Float64()},
    )

    def cutoff(category: str, column: str, threshold: float, quantile: float | None) -> float:
        scores = found.filter(pl.col("category") == category)[column].drop_nulls()
        value = scores.quantile(quantile, "linear") if quantile is not None else None
        return threshold if value is None else value

    scores = {
        str(name): cutoff(name, "score", value, part.quantiles.get(name)) for name, value in part.thresholds.items()
    }
    judged: dict[str, float] = {}
    if part.answer_score:
        wanted = part.answer_score
        judged = {name: cutoff(name, "mark", wanted.threshold, wanted.quantile) for name in WITHOUT_RULE}
        if part.reward_model is None:  # verify_score is the judge's mark
            scores |= judged
    return Cutoffs(scores, judged)


def table(responses: pl.DataFrame, verdicts: list[Verdict], cutoffs: Cutoffs) -> pl.DataFrame:
    """Return the verification table: `passed` is a score above its cut-off (strict), for scored verdicts only.

    Args:
        responses: columns of `tables.RESPONSE`.
        verdicts: one per response, in order.

    Raises:
        VerificationError: not exactly one verdict per response, or a category without threshold.
    """
    if responses["response_id"].to_list() != [verdict.response_id for verdict in verdicts]:
        raise VerificationError("not every response has exactly one verdict.")
    missing = sorted(set(responses["category"].to_list()) - set(cutoffs.scores))
    if missing:
        raise VerificationError(f"no pass threshold for {', '.join(missing)}.", "add it to verification.thresholds.")
    released = ["released_score"] if "released_score" in responses.columns else []
    keys = responses.select("response_id", "query_id", "source", "teacher", "category", "status", *released)
    found = pl.DataFrame(
        {
            "verify_score": [verdict.verify_score for verdict in verdicts],
            "verify_score_normalised": [verdict.verify_score_normalised for verdict in verdicts],
            "verdict": [verdict.verdict for verdict in verdicts],
            "verifier": [verdict.verifier for verdict in verdicts],
            "rule_verdict": [verdict.rule_verdict for verdict in verdicts],
            "second_opinion": [verdict.second_opinion for verdict in verdicts],
            "judge": [verdict.judge for verdict in verdicts],
            "judge_score": [verdict.judge_score for verdict in verdicts],
            "evidence": [_evidence(verdict) for verdict in verdicts],
        },
        schema_overrides={name: VERIFICATION[name] for name in _NULLABLE},
    )
    category = pl.col("category")
    cutoff = category.replace_strict(dict(cutoffs.scores), return_dtype=pl.Float64)
    second = category.replace_strict(dict(cutoffs.judge_scores), default=None, return_dtype=pl.Float64)
    scored = pl.col("verdict").is_in(["passed", "failed"])
    above = (pl.col("verify_score") > cutoff) & (second.is_null() | (pl.col("judge_score") > second))
    rows = keys.hstack(found).with_columns(cutoff=cutoff, passed=(scored & above).fill_null(False))
    verdict = pl.when(scored).then(pl.when("passed").then(pl.lit("passed")).otherwise(pl.lit("failed")))
    return conform(rows.with_columns(verdict=verdict.otherwise("verdict")), VERIFICATION)


def told_twice() -> pl.Expr:
    """Rows of the verification table in which rule and judge both said right or wrong."""
    said = ["passed", "failed"]
    return pl.col("rule_verdict").is_in(said) & pl.col("second_opinion").is_in(said)


def disagree() -> pl.Expr:
    """Rows in which rule and judge contradict each other."""
    return told_twice() & (pl.col("rule_verdict") != pl.col("second_opinion"))


def disagreements(rows: pl.DataFrame, responses: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    """Return one row (`tables.JUDGE_DISAGREEMENT`) per contradiction of rule and judge, with both verdicts.

    Args:
        rows: columns of `tables.VERIFICATION`.
        responses, queries: the responses that were verified, and their queries.
    """
    answers = responses.select("response_id", "answer")
    found = rows.filter(disagree()).join(answers, on="response_id", how="left", maintain_order="left")
    wanted = queries.select("query_id", "query_text", "reference_answer")
    found = found.join(wanted, on="query_id", how="left", maintain_order="left")
    return conform(
        found.select(
            *("response_id", "query_id", "source", "teacher", "query_text", "reference_answer", "answer"),
            *("rule_verdict", "verifier", "judge", "verdict", "evidence"),
            judge_verdict="second_opinion",
        ),
        JUDGE_DISAGREEMENT,
    )


def _evidence(verdict: Verdict) -> str:
    text = json.dumps(verdict.evidence, sort_keys=True)
    if len(text) <= MAX_EVIDENCE_CHARACTERS:
        return text
    return json.dumps({"cut": text[: MAX_EVIDENCE_CHARACTERS - 200]})


SCORE_BINS = ("0", "to 0.25", "to 0.5", "to 0.75", "below 1", "1", "none")


def score_histogram(rows: pl.DataFrame) -> dict[str, int]:
    """Return the number of responses per bin of verify_score_normalised; `none` has no score."""
    score = pl.col("verify_score_normalised")
    bins = (
        pl.when(score.is_null())
        .then(pl.lit("none"))
        .when(score <= 0)
        .then(pl.lit("0"))
        .when(score <= 0.25)
        .then(pl.lit("to 0.25"))
        .when(score <= 0.5)
        .then(pl.lit("to 0.5"))
        .when(score <= 0.75)
        .then(pl.lit("to 0.75"))
        .when(score < 1)
        .then(pl.lit("below 1"))
        .otherwise(pl.lit("1"))
    )
    counts = dict(rows.select(bins.alias("bin"))["bin"].value_counts().iter_rows())
    return {name: int(counts.get(name, 0)) for name in SCORE_BINS}
