"""Verdicts that cost too much to make twice: a killed run verifies only what is missing.

A verdict's key is a hash of its whole request (response, reference answer, tests, ...); the store's settings are what
the verifiers were told, and which weights and prompts they use. Thresholds are not among them: a changed cut-off
verifies nothing again. What was verified between the waves of `responses` is not verified again after them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from pydantic import TypeAdapter

from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.generation import content_key
from deepdistill_resources.lake import Lake
from deepdistill_resources.verifiers.base import Verdict, VerificationRequest, VerificationSettings

VERSION = 2  # raise it when a verifier says something else of the same request
STORED: dict[str, pl.DataType] = {
    "key": pl.String(),
    "verify_score": pl.Float64(),
    "verify_score_normalised": pl.Float64(),
    "verdict": pl.String(),
    "verifier": pl.String(),
    "rule_verdict": pl.String(),
    "second_opinion": pl.String(),
    "judge": pl.String(),
    "judge_score": pl.Float64(),
    "evidence": pl.String(),  # JSON
}


class VerdictStore:
    """The verdicts of one partition (e.g. `source=s/teacher=t`) in the lake.

    Args:
        settings, identity: of the verifier (see `Verifier.identity`).
    """

    def __init__(self, lake: Lake, partition: str, settings: VerificationSettings, identity: Mapping[str, Any]) -> None:
        told = TypeAdapter(VerificationSettings).dump_python(settings, mode="json")
        values = {**told, **identity, "version": VERSION}
        self._store = ChunkStore(lake, f"_chunks/verdicts/{partition}", "key", STORED, values)

    def known(self, requests: Sequence[VerificationRequest]) -> list[Verdict | None]:
        """Return the stored verdict of each request, None where there is none."""
        keys = [_key(request) for request in requests]
        rows = {row["key"]: row for row in self._store.read(keys).iter_rows(named=True)}
        return [
            _verdict(request, rows[key]) if key in rows else None for request, key in zip(requests, keys, strict=True)
        ]

    def keep(self, requests: Sequence[VerificationRequest], verdicts: Sequence[Verdict]) -> None:
        """Commit the verdicts that would come out the same another time."""
        pairs = zip(requests, verdicts, strict=True)
        rows = [_row(request, verdict) for request, verdict in pairs if lasts(verdict)]
        if rows:
            self._store.commit(pl.DataFrame(rows, schema=STORED))


def lasts(verdict: Verdict) -> bool:
    """Whether a verdict says something of the response alone.

    A missing sandbox, compiler or model makes `unverifiable` too, at no cost, and may be there the next time.
    """
    if verdict.verdict == "infra_error":
        return False
    return verdict.verdict != "unverifiable" or verdict.judge is not None


def _key(request: VerificationRequest) -> str:
    return content_key(**vars(request))


def _row(request: VerificationRequest, verdict: Verdict) -> dict[str, Any]:
    values = {name: getattr(verdict, name) for name in STORED if name not in ("key", "evidence")}
    return {"key": _key(request), **values, "evidence": json.dumps(verdict.evidence, sort_keys=True)}


def _verdict(request: VerificationRequest, row: dict[str, Any]) -> Verdict:
    values = {name: value for name, value in row.items() if name not in ("key", "evidence")}
    return Verdict(response_id=request.response_id, evidence=json.loads(row["evidence"]), **values)
