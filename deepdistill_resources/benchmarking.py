"""Answer and verify a benchmark with one model: used by benchmark_responses and by the training studies.

Every sample has a content key, so a killed run asks only for what is missing. Verification is in evaluation mode: all
tests of a problem, pass or fail, answers without tags read leniently.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.engines.base import GenerationRequest, SamplingParameters
from deepdistill_resources.engines.prompting import PromptStyle, split_response
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import EvaluationError
from deepdistill_resources.generation import (
    GENERATED,
    GenerationReport,
    content_key,
    generate_missing,
    read_generated,
    seed_of,
)
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ResolvedModel
from deepdistill_resources.verifiers.base import Verdict, VerificationRequest, VerificationSettings, Verifier
from deepdistill_resources.verifiers.suite import VerifierSuite

STORE_DIRECTORY = "_chunks/benchmark_responses"
VERIFICATION_ATTEMPTS = 3  # what failed for an infrastructure reason is verified again
# A timeout is the response's own doing in a benchmark, so it is wrong; `unverifiable` says nothing about a response.
_PASSED: dict[str, bool | None] = {"passed": True, "failed": False, "timeout": False}

ANSWERED: dict[str, pl.DataType] = {
    "response_id": pl.String(),
    "problem_id": pl.String(),
    "sample_index": pl.Int64(),
    "text": pl.String(),
    "answer": pl.String(),  # what counts as the answer in a majority vote; null where none could be read
    "has_format": pl.Boolean(),  # a think part and an answer part, each in its tags
    "status": pl.String(),
    "completion_tokens": pl.Int64(),
    "passed": pl.Boolean(),  # null: unverifiable
    "verify_score": pl.Float64(),
    "verdict": pl.String(),
    "verifier": pl.String(),
    "evidence": pl.String(),
    "engine": pl.String(),
    "model_revision": pl.String(),
}


@dataclass(frozen=True)
class BenchmarkRun:
    """Who answers, how often and how.

    Args:
        samples: k, responses per problem.
        style: how the model is prompted; for a student the style it was trained in.
        verification: without a judge, unless the recipe names one for its benchmarks.
    """

    model: ResolvedModel
    style: PromptStyle
    sampling: SamplingParameters
    samples: int
    seed: int
    verification: VerificationSettings


@dataclass(frozen=True)
class BenchmarkAnswers:
    """The ANSWERED rows of one run, and how many of them an earlier, killed run had generated."""

    rows: pl.DataFrame
    reused: int
    tokens_per_second: float  # 0 where nothing was generated now


@dataclass(frozen=True)
class _Sample:
    problem_id: str
    sample_index: int
    request: GenerationRequest


def answer_benchmark(
    run: BenchmarkRun,
    problems: pl.DataFrame,
    engine: EngineResource,
    verifier_suite: VerifierSuite,
    lake: Lake,
    log: Callable[[str], None],
) -> BenchmarkAnswers:
    """Return one ANSWERED row per problem and sample, sorted by problem and sample.

    Args:
        problems: columns problem_id, category, messages, problem_text, reference_answer, options, test_cases,
            constraints (as in the benchmark_problems table).

    Raises:
        EvaluationError: a sample has no response, or cannot be verified for an infrastructure reason.
        EngineError, ModelError: the model cannot answer at all.
    """
    samples = _samples(run, problems)
    generated, report = _generate(run, samples, engine, lake, log)
    _check_answered(samples, generated)
    requests = _verification_requests(problems, samples, generated)
    verifier = verifier_suite.open(run.verification)
    try:
        verdicts = verify_until_decided(verifier, requests)
    finally:
        verifier.close()
    verdicts = [_with_outcomes(verdict, request) for verdict, request in zip(verdicts, requests, strict=True)]
    return BenchmarkAnswers(
        rows=_rows(samples, generated, verdicts, run.model.revision),
        reused=report.reused if report else len(samples),
        tokens_per_second=report.tokens_per_second if report else 0.0,
    )


def verify_until_decided(verifier: Verifier, requests: list[VerificationRequest]) -> list[Verdict]:
    """Verify, and verify again what ended in an infrastructure error, three times in all.

    Raises:
        EvaluationError: some still cannot be verified; a score over the others would be another score.
    """
    verdicts = verifier.verify(requests)
    for _ in range(VERIFICATION_ATTEMPTS - 1):
        again = [index for index, verdict in enumerate(verdicts) if verdict.verdict == "infra_error"]
        if not again:
            break
        for index, verdict in zip(again, verifier.verify([requests[index] for index in again]), strict=True):
            verdicts[index] = verdict
    broken = [verdict for verdict in verdicts if verdict.verdict == "infra_error"]
    if broken:
        raise EvaluationError(
            f"{len(broken)} of {len(verdicts)} benchmark responses cannot be verified: "
            f"{broken[0].verifier}: {json.dumps(broken[0].evidence, default=str)[:300]}",
            "see `deepdistill doctor`, then run it again: the responses are kept.",
        )
    return verdicts


def _with_outcomes(verdict: Verdict, request: VerificationRequest) -> Verdict:
    """A response that was not read (truncated, refused) follows none of its instructions."""
    if not request.constraints or "strict" in verdict.evidence or verdict.verdict != "failed":
        return verdict
    names = [f"{one.get('instruction_id')}#{index}" for index, one in enumerate(request.constraints)]
    missed = dict.fromkeys(names, False)
    return replace(verdict, evidence={**verdict.evidence, "strict": missed, "loose_outcomes": missed})


def _settings(run: BenchmarkRun) -> dict[str, Any]:
    return {
        "model_revision": run.model.revision,
        "style": run.style.fingerprint(),
        "sampling": run.sampling.model_dump(mode="json"),
        "seed": run.seed,
    }


def _samples(run: BenchmarkRun, problems: pl.DataFrame) -> list[_Sample]:
    settings = _settings(run)
    samples = []
    for row in problems.iter_rows(named=True):
        messages = tuple({"role": message["role"], "content": message["content"]} for message in row["messages"])
        for index in range(run.samples):
            key = content_key(
                problem=row["problem_id"], messages=messages, category=row["category"], sample=index, **settings
            )
            request = GenerationRequest(key, messages, row["category"], seed_of(key, run.seed))
            samples.append(_Sample(row["problem_id"], index, request))
    return samples


def _generate(
    run: BenchmarkRun, samples: list[_Sample], engine: EngineResource, lake: Lake, log: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], GenerationReport | None]:
    store = ChunkStore(lake, STORE_DIRECTORY, "response_id", GENERATED, _settings(run))
    requests, report = [sample.request for sample in samples], None
    # A model is loaded only when there is something left to ask.
    if store.missing(request.key for request in requests):
        session = engine.open(run.model, run.style)
        try:
            report = generate_missing(session, store, requests, run.sampling, log)
        finally:
            session.close()
    rows = read_generated(store, requests).iter_rows(named=True)
    return {row["response_id"]: row for row in rows}, report


def _check_answered(samples: list[_Sample], generated: dict[str, dict[str, Any]]) -> None:
    missing = [f"{s.problem_id} sample {s.sample_index}" for s in samples if s.request.key not in generated]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(samples)} benchmark responses are missing: {', '.join(missing[:5])}.",
            "run it again: only the missing ones are asked for.",
        )


def _verification_requests(
    problems: pl.DataFrame, samples: list[_Sample], generated: dict[str, dict[str, Any]]
) -> list[VerificationRequest]:
    rows = {row["problem_id"]: row for row in problems.iter_rows(named=True)}
    requests = []
    for sample in samples:
        problem, response = rows[sample.problem_id], generated[sample.request.key]
        parts = split_response(response["text"])
        requests.append(
            VerificationRequest(
                response_id=sample.request.key,
                category=problem["category"],
                query=problem["problem_text"],
                text=response["text"],
                think=parts.think,
                answer=parts.answer,
                status=response["status"],
                reference_answer=problem["reference_answer"],
                options=problem["options"],
                test_cases=json.loads(problem["test_cases"]) if problem["test_cases"] else None,
                constraints=json.loads(problem["constraints"]) if problem["constraints"] else None,
                evaluation_mode=True,
            )
        )
    return requests


def _rows(
    samples: list[_Sample], generated: dict[str, dict[str, Any]], verdicts: list[Verdict], revision: str
) -> pl.DataFrame:
    rows = [
        _row(sample, generated[sample.request.key], verdict, revision)
        for sample, verdict in zip(samples, verdicts, strict=True)
    ]
    return pl.DataFrame(rows, schema=ANSWERED).sort("problem_id", "sample_index")


def _row(sample: _Sample, response: dict[str, Any], verdict: Verdict, revision: str) -> dict[str, Any]:
    return {
        "response_id": sample.request.key,
        "problem_id": sample.problem_id,
        "sample_index": sample.sample_index,
        "text": response["text"],
        "answer": _voted_answer(response["text"], verdict),
        "has_format": has_format(response["text"]),
        "status": response["status"],
        "completion_tokens": response["completion_tokens"],
        "passed": _PASSED.get(verdict.verdict),
        "verify_score": verdict.verify_score,
        "verdict": verdict.verdict,
        "verifier": verdict.verifier,
        "evidence": json.dumps(
            verdict.evidence | ({"judged_by": verdict.judge} if verdict.judge else {}), ensure_ascii=False, default=str
        ),
        "engine": response["engine"],
        "model_revision": revision,
    }


def has_format(text: str) -> bool:
    """Whether a response has a think part and an answer part, each in its tags.

    >>> has_format("<think>2+2=4</think><answer>4</answer>"), has_format("4")
    (True, False)
    """
    parts = split_response(text)
    return parts.think is not None and parts.answer is not None and "<answer>" in text


def _voted_answer(text: str, verdict: Verdict) -> str | None:
    """Return the answer that the verifier read, else the response's answer part."""
    read = verdict.evidence.get("answer") or verdict.evidence.get("chosen")
    return str(read) if read else split_response(text).answer
