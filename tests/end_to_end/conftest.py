import os
import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).parents[2]
CANARY = "canary-7351"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "OPENAI_API_KEY", "DAGSTER_POSTGRES_URL")
RECIPE = Path(__file__).parent / "small.yaml"


class House:
    """One home directory and the environment that points everything there."""

    def __init__(self, home: Path):
        self.home = home
        models = os.environ.get("DEEPDISTILL_MODELS", str(CLONE / ".deepdistill" / "models"))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(CLONE),
            "DEEPDISTILL_HOME": str(home),
            "DEEPDISTILL_RECIPE": str(RECIPE),
            "DEEPDISTILL_MODELS": models,
            "DAGSTER_DISABLE_TELEMETRY": "1",
            **{name: f"{CANARY}-{name}" for name in SECRETS},
        }
        self.lake = home / "small" / "lake"

    def start(self, *arguments, **options):
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        return subprocess.Popen(command, env=self.environment, cwd=CLONE, text=True, **options)

    def run(self, *arguments):
        process = self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output


@pytest.fixture(scope="session")
def new_house(tmp_path_factory):
    return lambda: House(tmp_path_factory.mktemp("home"))
