"""Math: guards, exact text and exact values, then math-verify in killable processes (arXiv 2504.17565 section 2.4).

The order is: the last boxed answer (or the stated one), equal text, guards against answers that would make the algebra
explode or that claim several values, exact normal forms, math-verify. Some of math-verify's own passes are refused on
purpose: equation chains with unequal sides, alternatives, a set for a tuple, another or a missing unit, lists with an
ellipsis, numbers that agree only because both were rounded to zero.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from deepdistill_resources.verifiers.base import (
    Verdict,
    VerdictCode,
    VerificationRequest,
    VerificationSettings,
    Verifier,
)
from deepdistill_resources.verifiers.math_answer import (
    as_rational,
    bracket_kind,
    claims_several,
    compact,
    find_answer,
    has_ellipsis,
    last_boxed,
    sides,
    split_unit,
    too_complex,
    unwrapped,
)
from deepdistill_resources.verifiers.math_forms import equal_exactly
from deepdistill_resources.verifiers.math_pool import Comparison, MathPool, Pair

NO_REFERENCE = "math:no_reference"
MAX_MEMORY = 100_000  # remembered comparisons


@dataclass(frozen=True)
class Decision:
    """What is known before the algebra: a verdict, or the pairs that must all be equal."""

    verdict: VerdictCode | None
    rule: str
    pairs: tuple[Pair, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)


def clean_reference(reference: str) -> str:
    """Return a reference answer without box, dollar signs and `####`."""
    boxed = last_boxed(reference)
    text = boxed if boxed is not None else reference.rpartition("####")[2]
    return _without_currency(unwrapped(text))


def _without_currency(text: str) -> str:
    return re.sub(r"^\\?\$\s*(?=[\d.-])", "", text)


def decide(reference: str, text: str, lenient: bool = False) -> Decision:
    """Decide what can be decided without algebra.

    Args:
        reference: the reference answer, as the query has it.
        text: the response's answer part.
        lenient: benchmark scoring of text without tags.
    """
    wanted = clean_reference(reference)
    if not wanted:
        return Decision("unverifiable", NO_REFERENCE)
    found = find_answer(text, lenient)
    if found.problem:
        return Decision("failed", f"math:{found.problem}")
    answer = _without_currency(unwrapped(found.text))
    evidence = {"answer": answer[:200], "reference": wanted[:200]}
    if answer and compact(answer) == compact(wanted):
        return Decision("passed", "math:exact", evidence=evidence)
    guard = _refused(wanted, answer)
    if guard:
        return Decision("failed", f"math:guard:{guard}", evidence=evidence)
    wanted, answer = _without_units(wanted, answer)
    claims = [answer] if "=" in wanted else sides(answer)
    undecided = []
    for claim in claims:
        equal = equal_exactly(wanted, claim)
        if equal is False:
            return Decision("failed", "math:exact_value", evidence=evidence)
        if equal is None:
            undecided.append((wanted, claim))
    if not undecided:
        return Decision("passed", "math:exact_value", evidence=evidence)
    return Decision(None, "math:math-verify", tuple(undecided), evidence)


def _refused(wanted: str, answer: str) -> str | None:
    """Name the reason for which an answer fails without a look at its value."""
    if not answer:
        return "empty"
    explosive = too_complex(answer)
    if explosive:
        return explosive
    if claims_several(wanted, answer):
        return "multi_answer"
    if has_ellipsis(wanted) or has_ellipsis(answer):
        return "ellipsis"
    kinds = {bracket_kind(wanted), bracket_kind(answer)}
    if kinds == {"set", "tuple"}:
        return "set_for_tuple"
    wanted_unit, unit = split_unit(wanted)[1], split_unit(answer)[1]
    if wanted_unit and unit != wanted_unit:
        return "missing_unit" if not unit else "other_unit"
    return None


def _without_units(wanted: str, answer: str) -> tuple[str, str]:
    return split_unit(wanted)[0], split_unit(answer)[0]


def final_answer(request: VerificationRequest) -> str:
    """Return the answer a response gives, as it stands; the end of its answer part where none can be told apart."""
    text = request.answer or (request.text if request.evaluation_mode else "")
    found = find_answer(text, request.evaluation_mode)
    return text[-500:].strip() if found.problem else unwrapped(found.text)


class MathVerifier(Verifier):
    """Verifies math responses; equal final answers of one query are compared once."""

    def __init__(self, settings: VerificationSettings, workers: int) -> None:
        self._pool = MathPool(workers, settings.math_timeout_seconds)
        self._memory: dict[Pair, Comparison] = {}

    def verify(self, requests: list[VerificationRequest]) -> list[Verdict]:
        """Return one verdict per request."""
        decisions = [self._decide(request) for request in requests]
        pairs = dict.fromkeys(pair for decision in decisions for pair in decision.pairs)
        if len(self._memory) + len(pairs) > MAX_MEMORY:
            self._memory.clear()
        compared = self._pool.compare(pair for pair in pairs if pair not in self._memory)
        results = {**self._memory, **compared}
        self._memory |= {pair: result for pair, result in compared.items() if result in ("equal", "different")}
        return [_verdict(request, decision, results) for request, decision in zip(requests, decisions, strict=True)]

    def close(self) -> None:
        """Kill the worker processes."""
        self._pool.close()

    @staticmethod
    def _decide(request: VerificationRequest) -> Decision:
        text = request.answer or (request.text if request.evaluation_mode else "")
        return decide(request.reference_answer or "", text, lenient=request.evaluation_mode)


_VERDICTS: dict[Comparison, VerdictCode] = {
    "equal": "passed",
    "different": "failed",
    "unparsable_answer": "failed",
    "error": "failed",
    "unparsable_reference": "unverifiable",
    "timeout": "timeout",
    "memory_limit": "timeout",
    "infra_error": "infra_error",
}
_WORST: tuple[Comparison, ...] = (
    "infra_error",
    "unparsable_reference",
    "different",
    "unparsable_answer",
    "error",
    "timeout",
    "memory_limit",
    "equal",
)


def _verdict(request: VerificationRequest, decision: Decision, results: dict[Pair, Comparison]) -> Verdict:
    verdict, rule, evidence = decision.verdict, decision.rule, dict(decision.evidence)
    if verdict is None:
        worst = min((results[pair] for pair in decision.pairs), key=_WORST.index)
        verdict = _VERDICTS[worst]
        if worst == "unparsable_reference":
            rule, evidence["reason"] = "math:rule_unverifiable", "the reference answer does not verify against itself"
        elif worst not in ("equal", "different"):
            evidence["comparison"] = worst
    score = {"passed": 1.0, "failed": 0.0, "timeout": 0.0}.get(verdict)
    hopeless = rule == NO_REFERENCE
    return Verdict(request.response_id, score, score, verdict, rule, hopeless=hopeless, evidence=evidence)


_WORDS = re.compile(r"(?<!\\)\b[A-Za-z]{2,}\s+[A-Za-z]{2,}")


class ReferenceChecker:
    """Finds references that no answer could ever equal: nothing in them, explosive, or not equal to themselves.

    References in words are left alone: a judge can still read them. Where there is one (`judged`), so are those that no
    rule finds equal to themselves: responses to them are `math:rule_unverifiable` until the judge has spoken.
    """

    def __init__(self, workers: int, seconds: float = 6.0, judged: bool = False) -> None:
        self._workers, self._seconds, self._judged = workers, seconds, judged
        self._pool: MathPool | None = None

    def unusable(self, references: Iterable[str]) -> dict[str, str]:
        """Return the unusable ones, each with what is wrong with it."""
        found: dict[str, str] = {}
        unknown: dict[str, Pair] = {}
        for reference in dict.fromkeys(references):
            wanted = clean_reference(reference)
            explosive = too_complex(wanted)
            if not wanted:
                found[reference] = "empty"
            elif explosive:
                found[reference] = explosive
            elif not self._judged and as_rational(wanted) is None and not _WORDS.search(wanted):
                value = split_unit(wanted)[0]
                unknown[reference] = (value, value)
        results = self._compare(set(unknown.values()))
        wrong = {reference: results[pair] for reference, pair in unknown.items() if results[pair] not in _FINE}
        return found | {reference: f"against itself: {result}" for reference, result in wrong.items()}

    def _compare(self, pairs: set[Pair]) -> dict[Pair, Comparison]:
        if not pairs:
            return {}
        self._pool = self._pool or MathPool(self._workers, self._seconds)
        return self._pool.compare(sorted(pairs))

    def close(self) -> None:
        """Kill the worker processes, if there were any."""
        if self._pool is not None:
            self._pool.close()


_FINE: frozenset[Comparison] = frozenset({"equal", "infra_error"})
