"""A job whose one step verifies math in a process of Dagster's multiprocess executor; it writes the verdicts to OUT."""

import json
import os
from pathlib import Path

import dagster as dg

from deepdistill_resources.verifiers.base import VerificationRequest, VerificationSettings
from deepdistill_resources.verifiers.math import MathVerifier

ANSWERS = {"algebra": (r"\sqrt{12}", r"2\sqrt{3}"), "wrong": (r"\sqrt{2}", "x"), "bomb": ("7", "(x+1)^{99999}")}


@dg.op
def verify():
    verifier = MathVerifier(VerificationSettings(math_timeout_seconds=4), 2)
    asked = [
        VerificationRequest(name, "math", "q", text, "t", text, reference_answer=reference)
        for name, (reference, text) in ANSWERS.items()
    ]
    try:
        found = {verdict.response_id: verdict.verdict for verdict in verifier.verify(asked)}
    finally:
        verifier.close()
    Path(os.environ["OUT"]).write_text(json.dumps(found))


@dg.job(executor_def=dg.multiprocess_executor.configured({"start_method": {"spawn": {}}}))
def math():
    verify()
