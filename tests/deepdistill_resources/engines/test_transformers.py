import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepdistill_resources.engines import worker_pool
from deepdistill_resources.engines.base import GenerationRequest, SamplingParameters
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.transformers import TransformersEngine, TransformersSettings, _dealt
from deepdistill_resources.errors import ModelError
from deepdistill_resources.models import ResolvedModel

SAMPLING = SamplingParameters(temperature=1.0, top_p=0.95, max_new_tokens=16)


def resolved(path, revision="r1"):
    return ResolvedModel("tiny", path, revision, None, "CC0-1.0", "made here")


def requests(count, passes=2):
    return [
        GenerationRequest(f"{n}-{p}", ({"role": "user", "content": f"{n}+{n}"},), "math", 100 * n + p)
        for n in range(count)
        for p in range(passes)
    ]


def session(path, processes, style=None, revision="r1"):
    engine = TransformersEngine(TransformersSettings(batch_size=16, processes=processes))
    return engine.open(resolved(path, revision), style or PromptStyle())


@pytest.fixture
def small_pool(monkeypatch):
    """Decoding processes from the first request on; ended after the test."""
    from deepdistill_resources.engines import transformers

    monkeypatch.setattr(transformers, "SHARED_FROM", 0)
    monkeypatch.setattr(worker_pool, "_POOLS", {})
    yield
    for pool in worker_pool._POOLS.values():
        pool.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_its_time_at_work_is_told_and_is_not_its_readers(tiny_model, small_pool, processes):
    reader = session(tiny_model, processes)
    list(reader.generate(requests(2), SAMPLING))  # loads the model
    before, started = reader.busy_seconds, time.monotonic()
    for _ in reader.generate(requests(12), SAMPLING):
        time.sleep(0.02)
    seconds = time.monotonic() - started
    assert 0 < reader.busy_seconds - before < seconds
    if processes == 1:
        assert reader.busy_seconds - before <= seconds - 24 * 0.02


def test_processes_and_one_process_write_the_same(tiny_model, small_pool, save_tiny_model, tmp_path):
    wanted = requests(30)
    here = {item.key: item.text for item in session(tiny_model, 1).generate(wanted, SAMPLING)}
    there = {item.key: item.text for item in session(tiny_model, 2).generate(wanted, SAMPLING)}
    assert there == here
    assert len(there) == 60

    texts = [item for item in here.values() if len(item) > 3]
    assert session(tiny_model, 2).perplexities(texts) == pytest.approx(session(tiny_model, 1).perplexities(texts))

    # The processes stay, and a new revision of the weights is never answered from the old ones.
    first = [worker._process.pid for worker in worker_pool._POOLS[2]._workers]
    other = save_tiny_model(tmp_path / "other", key_value_heads=2, seed=1)
    texts = {item.key: item.text for item in session(other, 2, revision="r2").generate(wanted, SAMPLING)}
    assert texts != here
    assert [worker._process.pid for worker in worker_pool._POOLS[2]._workers] == first


@pytest.mark.slow
def test_a_killed_process_costs_its_own_requests_for_the_moment(tiny_model, small_pool):
    slow = SAMPLING.model_copy(update={"max_new_tokens": 90})
    wanted = requests(300, passes=1)
    running = session(tiny_model, 2)
    stream = running.generate(wanted, slow)
    found = [next(stream)]
    worker_pool._POOLS[2]._workers[0]._process.kill()
    found += list(stream)
    assert sorted(item.key for item in found) == sorted(item.key for item in wanted)
    failed = [item for item in found if item.status == "server_error"]
    assert failed
    assert "signal 9" in failed[0].error
    again = list(running.generate([item for item in wanted if item.key == failed[0].key], slow))
    assert [item.status == "server_error" for item in again] == [False]


@pytest.mark.slow
def test_a_reader_that_stops_early_leaves_nothing_behind(tiny_model, small_pool):
    running = session(tiny_model, 2)
    stream = running.generate(requests(40), SAMPLING)
    next(stream)
    stream.close()
    assert len(list(running.generate(requests(3), SAMPLING))) == 6


PARENT = """
import sys, time
from deepdistill_resources.engines.worker_pool import shared_pool
pool = shared_pool(2)
print(*[worker._process.pid for worker in pool._alive()], flush=True)
time.sleep(60)
"""


def test_processes_end_with_their_parent_even_when_it_is_killed():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment)
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(_runs(child) for child in children):
        time.sleep(0.1)
    assert not any(_runs(child) for child in children)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_prefilled_opening_is_part_of_the_text(tiny_model):
    style = PromptStyle(mode="few_shot", prefill="<think>", examples={"default": ({"query": "1+1", "response": "2"},)})
    for item in session(tiny_model, 1, style).generate(requests(3), SAMPLING):
        assert item.text.startswith("<think>") or item.status == "empty"
        assert item.prompt_tokens > 0


def test_equal_prompts_are_dealt_to_one_process_and_shares_are_equal():
    encoded = [(f"{n}-{p}", (1,) * (n + 1), 0) for n in range(10) for p in range(4)]
    shares = _dealt(encoded, 2)
    assert [len(share) for share in shares] == [20, 20]
    assert not {item[1] for item in shares[0]} & {item[1] for item in shares[1]}


def test_a_model_without_weights_names_the_fix():
    with pytest.raises(ModelError, match="Fix: use the openai engine"):
        TransformersEngine().open(resolved(None), PromptStyle())
