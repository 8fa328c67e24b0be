"""verified_responses: a verify_score for every response."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import dagster as dg
import polars as pl

from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe, Verification
from deepdistill_assets.stage import Stage, counts_table, frame_table, materialized, partition_of
from deepdistill_assets.tables import JUDGE_DISAGREEMENT, VERIFICATION
from deepdistill_assets.verification.released_scores import (
    comparison,
    on_our_scale,
    released_verdicts,
    science_scale,
    with_released,
)
from deepdistill_assets.verification.verdicts import (
    OpenVerifier,
    Run,
    VerificationError,
    cutoffs,
    disagree,
    disagreements,
    requests,
    require_working_infrastructure,
    score_histogram,
    table,
    told_twice,
    verify,
)
from deepdistill_resources.compute import Compute, Outcome
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ServedOrigin
from deepdistill_resources.plots import bar_chart, svg_metadata
from deepdistill_resources.verifiers.base import Verdict, VerificationRequest
from deepdistill_resources.verifiers.stored import VERSION
from deepdistill_resources.verifiers.suite import VerifierSuite

INFRA_ERROR_RATE, CANARIES, EVERY_RESPONSE_VERIFIED = "infra_error_rate", "canaries", "every_response_verified"
CHECKS = (INFRA_ERROR_RATE, CANARIES, EVERY_RESPONSE_VERIFIED)


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Declare the assets of this room."""
    stage = Stage("verification", recipe)

    @stage.asset(
        schema=VERIFICATION,
        version=VERSION,
        knobs=[recipe.verification, recipe.verification_models(), *recipe.judge_prompts()],
        partitions_def=partitions.source_teacher,
        pool="gpu" if _loads_models(recipe) else "verifier",
        checks=CHECKS,
    )
    def verified_responses(
        context: dg.AssetExecutionContext,
        responses: pl.DataFrame,
        distillation_queries: pl.DataFrame,
        lake: Lake,
        verifier_suite: VerifierSuite,
        compute: Compute,
    ) -> dg.MaterializeResult:
        """Whether each response is right: a verify_score by math-verify, sandboxed tests, instruction checks or rule.

        One row per response. An infrastructure error or a time-out is never a wrong answer; what no verifier can tell
        is `unverifiable`, counted and never trained on. A killed run continues with what is missing.
        """
        place = f"source={partition_of(context, 'source')}/teacher={partition_of(context, 'teacher')}"
        suite = verifier_suite.model_copy(update={"workers": verifier_suite.workers or compute.cores()})
        opener = OpenVerifier(suite, lake, recipe.verification_settings(), place)
        try:
            released = released_verdicts(responses, recipe.verification)
            wanted = requests(responses, distillation_queries)
            run = _run(context, [one for one in wanted if one.response_id not in released], opener, compute)
            run = with_released(run, wanted, released)
            require_working_infrastructure(run, recipe.verification.max_infra_error_share)
            rows = table(responses, run.verdicts, cutoffs(recipe.verification, run.verdicts, responses))
        except VerificationError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        return materialized(
            rows,
            metadata=_metadata(rows, run) | compute.facts() | _released(rows, recipe.verification),
            checks=_checks(responses, rows, run, recipe.verification.max_infra_error_share),
            volatile=["evidence"],  # a re-run after a time-out leaves its mark there
        )

    if recipe.verification.judge == "off":
        return stage.declared

    @stage.asset(schema=JUDGE_DISAGREEMENT, version=1, partitions_def=partitions.source_teacher)
    def judge_disagreements(
        verified_responses: pl.DataFrame, responses: pl.DataFrame, distillation_queries: pl.DataFrame
    ) -> dg.MaterializeResult:
        """Math responses on which rule and judge contradict each other, with both verdicts: worth a look."""
        rows = disagreements(verified_responses, responses, distillation_queries)
        shown = rows.select("reference_answer", "answer", "rule_verdict", "judge_verdict", "verifier")
        return materialized(rows, metadata={**_agreement(verified_responses), "examples": frame_table(shown)})

    return stage.declared


def _loads_models(recipe: Recipe) -> bool:
    """Whether a judge or reward model is loaded here, and not asked on its server."""
    return any(not isinstance(origin, ServedOrigin) for origin in recipe.verification_models().values())


def _run(
    context: dg.AssetExecutionContext, wanted: list[VerificationRequest], opener: OpenVerifier, compute: Compute
) -> Run:
    def verify_batches(batches: Iterable[list[VerificationRequest]], count: int) -> Iterator[Outcome[list[Verdict]]]:
        return compute.map_batches(batches, opener, name="verification", rows=count, log=context.log.info)

    verifier = opener.suite.open(opener.settings)  # loads nothing: it says which weights and prompts count
    try:
        known = opener.store(verifier.identity()).known(wanted)
        run = verify(wanted, known, verify_batches)
        return replace(run, facts=verifier.facts() | run.facts)
    finally:
        verifier.close()


def _counts(rows: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(rows[column].value_counts(sort=True).iter_rows())


def _metadata(rows: pl.DataFrame, run: Run) -> dict[str, Any]:
    histogram = score_histogram(rows)
    chart = bar_chart(list(histogram), {"responses": list(histogram.values())}, "verify_score, normalised")
    return {
        "passed": int(rows["passed"].sum()),
        "verdicts": counts_table(_counts(rows, "verdict"), name="verdict", value="responses"),
        "verifiers": counts_table(_counts(rows, "verifier"), name="verifier", value="responses"),
        "score_histogram": svg_metadata(chart),
        "verified_new": run.new,
        "verified_reused": rows.height - run.new,
        "verifications_per_second": round(run.per_second(), 1),
        "infra_error_share": run.infra_error_share(),
        **_agreement(rows),
        **_tiers(rows),
        **run.facts,
    }


def _tiers(rows: pl.DataFrame) -> dict[str, Any]:
    """Return where the programs of all rows ran, those that were verified before (between waves, say) included."""
    tiers = rows.filter(category="code")["evidence"].str.json_path_match("$.tier").drop_nulls().unique().sort()
    return {"sandbox_tier": ", ".join(tiers)} if len(tiers) else {}


def _agreement(rows: pl.DataFrame) -> dict[str, Any]:
    """Return how often rule and judge said different things; nothing where no judge was asked."""
    both = rows.filter(told_twice())
    different = both.filter(disagree()).height
    rate = {"judge_disagreement_rate": different / both.height} if both.height else {}
    return rate | ({"judge_disagreements": different} if both.height else {})


def _released(rows: pl.DataFrame, part: Verification) -> dict[str, Any]:
    """Return what is to be said of the scores that responses were released with, if there are any."""
    if rows["released_score"].null_count() == rows.height:
        return {}
    scale = science_scale(rows, part.released_science_scale)
    facts: dict[str, Any] = {"verify_score_is": part.scores, "released_science_scale": scale.how}
    if part.scores == "ours":
        thresholds = {str(category): value for category, value in part.thresholds.items()}
        facts["ours_and_released"] = frame_table(comparison(rows, on_our_scale(rows, scale), thresholds))
    return facts


def _checks(responses: pl.DataFrame, rows: pl.DataFrame, run: Run, max_share: float) -> list[dg.AssetCheckResult]:
    share = run.infra_error_share()
    failed = int(run.facts.get("canaries_failed", 0))
    complete = rows["response_id"].to_list() == responses["response_id"].to_list()
    return [
        dg.AssetCheckResult(check_name=INFRA_ERROR_RATE, passed=share <= max_share, metadata={"share": share}),
        dg.AssetCheckResult(
            check_name=CANARIES,
            passed=failed == 0,
            metadata={"run": int(run.facts.get("canaries_run", 0)), "failed": failed},
        ),
        dg.AssetCheckResult(
            check_name=EVERY_RESPONSE_VERIFIED,
            passed=complete,
            metadata={"responses": responses.height, "rows": rows.height},
        ),
    ]
