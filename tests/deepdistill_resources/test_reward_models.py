"""Five heads, in their order, from a real checkpoint of that layout and from an endpoint; batches change no score."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError

from deepdistill_resources import reward_models
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import EngineError, ModelError
from deepdistill_resources.models import DirectoryOrigin, ModelStore, ResolvedModel, ServedOrigin
from deepdistill_resources.reward_models import HEADS, RewardError, check_heads, clamped, composite, open_reward_model
from deepdistill_resources.verifiers.base import NamedModel, VerificationRequest, VerificationSettings
from deepdistill_resources.verifiers.suite import VerifierSuite

BIAS = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5])
NAMES = dict(enumerate(f"helpsteer-{name}" for name in HEADS))
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"


def save(directory, heads=5, names=None, causal=False, seed=0, hidden=32):
    """Save a small Llama with a linear head and its bias on the last token, as the real checkpoint has it."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["<eos>", *letters])}, unk_token="?"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")  # like Llama 3: no padding token
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(letters) + 1,
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.5,
        **({} if causal else {"num_labels": heads}),
    )
    if names:
        config.id2label, config.label2id = names, {name: place for place, name in names.items()}
    (LlamaForCausalLM if causal else LlamaForSequenceClassification)(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    if not causal:
        file = directory / "model.safetensors"
        save_file({**load_file(file), "score.bias": BIAS[:heads].clone()}, file, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("reward") / "five", names=NAMES)


def model_at(path):
    return ResolvedModel("reward", path, "r", None, "x", "directory")


def chat(*texts):
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


CHATS = [chat("Hi", "Hello." * n) for n in (1, 30, 2, 17, 5)] + [chat("a", "b", "c", "d"), chat("Hi", "Hello.")]


def test_scores_are_those_of_the_model_alone_whatever_the_batch(checkpoint, monkeypatch):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    plain = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model = open_reward_model(model_at(checkpoint), "cpu")
    together = model.score(CHATS)
    monkeypatch.setattr(reward_models, "TOKENS_PER_BATCH", 1)
    alone = model.score(CHATS)
    for conversation, first, second in zip(CHATS, together, alone, strict=True):
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        with torch.inference_mode():
            logits = plain(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0]
        wanted = dict(zip(HEADS, (logits + BIAS).clamp(0, 4).tolist(), strict=True))
        assert first == pytest.approx(wanted, abs=1e-4)
        assert second == pytest.approx(wanted, abs=1e-4)
    assert len({round(composite(heads), 6) for heads in together}) > 3


def test_the_composite_is_of_three_heads_clamped_to_four():
    heads = clamped([5.0, -1.0, 2.0, 9.0, -9.0])
    assert heads == {"helpfulness": 4.0, "correctness": 0.0, "coherence": 2.0, "complexity": 4.0, "verbosity": 0.0}
    assert composite(heads) == 0.5
    for broken in ([1.0] * 4, [1.0] * 6, [float("nan")] * 5, [float("inf"), 1, 1, 1, 1]):
        with pytest.raises(RewardError):
            clamped(broken)


def test_a_conversation_that_is_too_long_has_no_score_and_stops_nobody(checkpoint):
    long, short = open_reward_model(model_at(checkpoint), "cpu").score([chat("Hi", "x" * 999), chat("Hi", "x")])
    assert isinstance(long, RewardError)
    assert long.final
    assert set(short) == set(HEADS)


def test_other_heads_are_refused(tmp_path):
    with pytest.raises(ModelError, match="expected are helpfulness, correctness, coherence"):
        open_reward_model(model_at(save(tmp_path / "one", heads=1)), "cpu")
    with pytest.raises(ModelError, match="expected are"):
        check_heads("x", {**NAMES, 0: NAMES[1], 1: NAMES[0]})
    check_heads("x", {place: f"LABEL_{place}" for place in range(5)})


def test_a_language_model_is_no_reward_model(tmp_path):
    with pytest.raises(ModelError, match=r"no plain reward model: missing \['score.weight'\]"):
        open_reward_model(model_at(save(tmp_path / "causal", causal=True)), "cpu")


class _Endpoint(BaseHTTPRequestHandler):
    """Answers from a real checkpoint; a fault that the last message names comes first."""

    protocol_version = "HTTP/1.1"
    keys: ClassVar[list[str]] = []  # what came where a message asks to show it

    def log_message(self, *arguments):
        pass

    def _send(self, body, status=200):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self._send({"data": [{"id": "five"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        first = text not in self.seen
        self.seen.add(text)
        if "show key" in text:
            self.keys.append(str(self.headers["authorization"]))
            return self._send(str(self.headers["authorization"]).encode(), 400)
        if "refuse with" in text:
            return self._send(b"not for you", int(text[-3:]))
        if "busy" in text and first:
            return self._send(b"", 503)
        if "too long" in text:
            return self._send(b"context length", 400)
        if "broken" in text:
            return self._send({"data": [{"data": [1, 2]}]} if first else b"{")
        with self.lock:
            outputs = self.model._forward([self.model._encode(body["messages"])])[0]
        assert (self.path, body["model"], body["use_activation"]) == ("/pooling", "five", False)
        return self._send({"data": [{"data": outputs}]})


@contextmanager
def endpoint(path):
    model = reward_models.LocalRewardModel(path, "cpu")
    handler = type("Endpoint", (_Endpoint,), {"model": model, "seen": set(), "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def served(address, name="five"):
    return ResolvedModel("reward", None, "r", None, "x", "served", served_name=name, base_url=address)


def test_an_endpoint_gives_the_same_scores(checkpoint):
    local = open_reward_model(model_at(checkpoint), "cpu").score(CHATS)
    with endpoint(checkpoint) as address:
        assert open_reward_model(served(address)).score(CHATS) == [pytest.approx(heads, abs=1e-4) for heads in local]
        with pytest.raises(EngineError, match="serves five, not six"):
            open_reward_model(served(address, "six"))
    with pytest.raises(EngineError, match="no reward endpoint answers"):
        open_reward_model(served(address))


def test_faults_of_an_endpoint_are_asked_again_or_named(checkpoint, monkeypatch):
    monkeypatch.setattr(reward_models.time, "sleep", lambda seconds: None)
    with endpoint(checkpoint) as address:
        model = open_reward_model(served(address), attempts=2)
        busy, long, broken = model.score([chat("Hi", "busy"), chat("Hi", "too long"), chat("Hi", "broken")])
    assert set(busy) == set(HEADS)
    assert long.final
    assert not broken.final
    assert "malformed reply" in str(broken)


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_an_endpoint_that_refuses_everything_stops_the_run(checkpoint, status):
    with endpoint(checkpoint) as address:
        model = open_reward_model(served(address))
        with pytest.raises(EngineError, match=f"pooling refuses: HTTP {status}: not for you"):
            model.score([chat("Hi", "Hello."), chat("Hi", f"refuse with {status}")])


def test_a_server_gets_the_key_that_its_own_entry_names_and_no_other(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    monkeypatch.setenv("REWARD_KEY", "ours")
    suite = VerifierSuite(model_store=ModelStore(directory=str(tmp_path)))
    origin = {"kind": "served", "license": "x", "name": "five"}
    said = []
    _Endpoint.keys.clear()
    for choice in ({"api_key_env": "REWARD_KEY"}, {"api_key_env": None}, {}):
        with endpoint(checkpoint) as address:
            named = NamedModel("five", ServedOrigin(**origin, base_url=address, **choice))
            request = VerificationRequest("1", "other", "Hi", "show key", "t", "show key")
            said.append(verify(suite, named, [request])[0].evidence["reason"].rpartition(": ")[2])
    assert _Endpoint.keys == ["Bearer ours", "None", "Bearer theirs"]
    assert said == ["Bearer ***", "None", "Bearer ***"]  # a key that a server repeats stays out of what is written
    with pytest.raises(ValidationError, match="should match pattern"):
        ServedOrigin(**origin, base_url="http://x", api_key_env="sk-a-key-itself")


def verify(suite, reward, requests):
    verifier = suite.open(VerificationSettings(reward_model=reward))
    try:
        return verifier.verify(requests)
    finally:
        verifier.close()


def test_the_suite_scores_the_answer_part_of_chats(checkpoint, tmp_path):
    suite = VerifierSuite(
        workers=1, engine=EngineResource(device="cpu"), model_store=ModelStore(directory=str(tmp_path))
    )
    origin = DirectoryOrigin(kind="directory", license="x", path=str(checkpoint))
    turns = tuple(chat("Hi", "Hello.", "And?"))
    requests = [
        VerificationRequest("1", "other", "Hi", "<think>hm</think>Hello.", "hm", "Hello."),
        VerificationRequest("2", "multi_turn", "And?", "Well.", "hm", "Well.", messages=turns),
        VerificationRequest("3", "other", "Hi", "x", "hm", "x" * 999),
    ]
    one, two, long = verify(suite, NamedModel("five", origin), requests)
    model = open_reward_model(model_at(checkpoint), "cpu")
    expected = model.score([chat("Hi", "Hello."), chat("Hi", "Hello.", "And?", "Well.")])
    assert [one.verify_score, two.verify_score] == pytest.approx([composite(heads) for heads in expected], abs=1e-4)
    assert (one.verifier, set(one.evidence["heads"])) == ("reward:five_heads", set(HEADS))
    assert (long.verdict, long.verify_score) == ("unverifiable", None)


def test_a_verifier_names_the_weights_that_lie_in_a_directory_now(tmp_path):
    suite = VerifierSuite(model_store=ModelStore(directory=str(tmp_path / "store")))
    origin = DirectoryOrigin(kind="directory", license="x", path=str(tmp_path / "five"))
    settings = VerificationSettings(reward_model=NamedModel("five", origin))
    found = []
    for seed in (0, 1):
        save(tmp_path / "five", names=NAMES, seed=seed)
        found.append(suite.open(settings).identity()["reward_model_revision"])
    assert found[0] != found[1]


def test_an_endpoint_that_stays_silent_is_an_infrastructure_error(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_models.time, "sleep", lambda seconds: None)
    suite = VerifierSuite(model_store=ModelStore(directory=str(tmp_path)), engine=EngineResource(max_attempts=2))
    with endpoint(checkpoint) as address:
        origin = ServedOrigin(kind="served", license="x", name="five", base_url=address)
        request = VerificationRequest("1", "other", "Hi", "broken", "t", "broken")
        assert verify(suite, NamedModel("five", origin), [request])[0].verdict == "infra_error"
