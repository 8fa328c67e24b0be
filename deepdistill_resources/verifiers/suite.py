"""All verifiers behind one door: `VerifierSuite.open(settings)` gives a verifier that knows every category."""

import os
from collections.abc import Callable
from typing import Any, Literal

from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import DeepDistillError, SandboxUnavailable
from deepdistill_resources.judges import Judge
from deepdistill_resources.models import ModelStore, ResolvedModel
from deepdistill_resources.portable import PortableResource
from deepdistill_resources.reward_models import open_reward_model
from deepdistill_resources.sandbox import TierName, choose_tier
from deepdistill_resources.verifiers.base import (
    NamedModel,
    Verdict,
    VerificationRequest,
    VerificationSettings,
    Verifier,
)
from deepdistill_resources.verifiers.code import CodeVerifier
from deepdistill_resources.verifiers.instructions import InstructionVerifier
from deepdistill_resources.verifiers.judged import JudgedAnswers, JudgedMath, JudgedScience
from deepdistill_resources.verifiers.math import MathVerifier
from deepdistill_resources.verifiers.reward import RewardVerifier
from deepdistill_resources.verifiers.science import ScienceVerifier

NEEDS_REWARD_MODEL = "responses of this category are scored by a reward model, and none is configured"


class Unverifiable(Verifier):
    """Says `unverifiable`, and why, for every response."""

    def __init__(self, verifier: str, reason: str) -> None:
        self.verifier, self.reason = verifier, reason

    def verify(self, requests: list[VerificationRequest]) -> list[Verdict]:
        """Return one verdict per request."""
        evidence = {"reason": self.reason}
        return [
            Verdict(
                request.response_id, None, None, "unverifiable", self.verifier, hopeless=True, evidence=dict(evidence)
            )
            for request in requests
        ]

    def facts(self) -> dict[str, Any]:
        """Return why nothing was verified."""
        return {self.verifier: self.reason}


class SuiteVerifier(Verifier):
    """Hands each response to the verifier of its category; a verifier starts when it is first needed.

    A response whose generation did not end well, or (outside evaluation) that has no answer part, is not verified: its
    score is 0 and its verdict `failed`, since grades count every response.
    """

    def __init__(
        self,
        makers: dict[str, Callable[[], Verifier]],
        judge: Judge | None = None,
        reward: RewardVerifier | None = None,
    ) -> None:
        self._makers, self._judge, self._reward = makers, judge, reward
        self._verifiers: dict[str, Verifier] = {}

    def verify(self, requests: list[VerificationRequest]) -> list[Verdict]:
        """Return one verdict per request, in order."""
        verdicts: dict[int, Verdict] = {}
        by_category: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            broken = _broken(request)
            if broken:
                verdicts[index] = Verdict(request.response_id, 0.0, 0.0, "failed", broken)
            else:
                by_category.setdefault(request.category, []).append(index)
        for category, indexes in by_category.items():
            found = self._verifier(category).verify([requests[index] for index in indexes])
            verdicts |= dict(zip(indexes, found, strict=True))
        return [verdicts[index] for index in range(len(requests))]

    def identity(self) -> dict[str, Any]:
        """Return the revisions of judge and reward model, and the judge's prompts."""
        return {**(self._judge.identity() if self._judge else {}), **(self._reward.identity() if self._reward else {})}

    def facts(self) -> dict[str, Any]:
        """Return the facts of all verifiers that were used."""
        found = {name: value for verifier in self._verifiers.values() for name, value in verifier.facts().items()}
        return found | (self._judge.describe() if self._judge else {})

    def close(self) -> None:
        """End all worker processes."""
        for verifier in self._verifiers.values():
            verifier.close()
        self._verifiers.clear()
        if self._judge:
            self._judge.close()

    def _verifier(self, category: str) -> Verifier:
        if category not in self._verifiers:
            maker = self._makers.get(category)
            self._verifiers[category] = maker() if maker else Unverifiable(category, f"no verifier for {category!r}")
        return self._verifiers[category]


def _math(settings: VerificationSettings, rule: Verifier, judge: Judge | None) -> Verifier:
    return JudgedMath(rule, judge, settings.judge) if judge and settings.judge != "off" else rule


def _answers(settings: VerificationSettings, reward: Verifier | None, judge: Judge | None) -> Verifier:
    if judge and settings.judge_answers:
        return JudgedAnswers(reward, judge)
    return reward or Unverifiable("reward_model", NEEDS_REWARD_MODEL)


def _broken(request: VerificationRequest) -> str | None:
    """Return the verifier name for a response that cannot be verified as it is."""
    if request.status != "ok":
        return f"status:{request.status}"
    if not request.evaluation_mode and not (request.answer or "").strip():
        return "structure:no_answer"
    return None


class VerifierSuite(PortableResource):
    """Verifiers of every category.

    Args:
        sandbox: which sandbox tier code runs in; `auto` takes the strongest that passes its self-test, `off` leaves
            code unverified.
        workers: processes at work at once for math and code; 0: one per CPU core.
        engine, model_store: load the models of judges and reward models, or reach their servers.
    """

    sandbox: Literal["auto", "nsjail", "bubblewrap", "bubblewrap-noproc", "landlock", "off"] = "auto"
    workers: int = 0
    engine: EngineResource | None = None
    model_store: ModelStore | None = None

    def open(self, settings: VerificationSettings) -> SuiteVerifier:
        """Return a verifier for responses of any category; close it after use.

        Benchmark responses are requests with `evaluation_mode=True`: all tests, 0 or 1, answers without tags are read
        leniently.

        Raises:
            DeepDistillError: the recipe wants a judge and names no model for it, or the model cannot be found.
        """
        judge, reward = self._judge(settings), self._reward(settings)
        return SuiteVerifier(
            {
                "math": lambda: _math(settings, MathVerifier(settings, self._count()), judge),
                "code": lambda: self._code(settings),
                "science": lambda: JudgedScience(ScienceVerifier(), judge) if judge else ScienceVerifier(),
                "instruction_following": InstructionVerifier,
                "multi_turn": lambda: _answers(settings, reward, judge),
                "other": lambda: _answers(settings, reward, judge),
            },
            judge,
            reward,
        )

    def _judge(self, settings: VerificationSettings) -> Judge | None:
        """Return the judge, whose model is loaded when the first question comes."""
        wanted = settings.judge_model
        if wanted is None:
            if settings.judge == "off":
                return None
            raise DeepDistillError(
                f"the recipe asks for a judge (verification.judge: {settings.judge}) and names none.",
                "set verification.judge_model, or verification.judge to off.",
            )
        model, engine = self._resolved(wanted), self.engine or EngineResource()
        name = f"{wanted.name}@{model.revision}"
        return Judge(
            name, lambda: engine.open(model, PromptStyle()), settings.judge_sampling, control=settings.judge_control
        )

    def _reward(self, settings: VerificationSettings) -> RewardVerifier | None:
        """Return the verifier of a reward model, which is loaded when the first response comes."""
        if settings.reward_model is None:
            return None
        model, engine = self._resolved(settings.reward_model), self.engine or EngineResource()
        return RewardVerifier(
            f"{settings.reward_model.name}@{model.revision}",
            lambda: open_reward_model(
                model, engine.device, engine.max_concurrency, engine.max_attempts, engine.timeout_seconds
            ),
        )

    def _resolved(self, wanted: NamedModel) -> ResolvedModel:
        if self.model_store is None:
            raise DeepDistillError(f"this verifier_suite has no model store to find {wanted.name} in.", "bind one.")
        return self.model_store.resolve(wanted.name, wanted.origin)

    def _count(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    def _code(self, settings: VerificationSettings) -> Verifier:
        if self.sandbox == "off":
            return Unverifiable("code:sandbox_off", "the profile switches the sandbox off (verifier_suite.sandbox)")
        wanted: TierName | None = None if self.sandbox == "auto" else self.sandbox
        try:
            tier, self_test = choose_tier(wanted)
        except SandboxUnavailable as error:
            return Unverifiable("code:no_sandbox", str(error))
        return CodeVerifier(settings, tier, self_test, self._count())
