"""A loopback server with the OpenAI routes that misbehaves on request: the prompt names the fault.

`python faulty_server.py PORT PARAMETERS` serves in a process of its own, which can be killed and started again.
"""

import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny"
CAPACITY = 3  # requests at once with the fault `crowded`
ONCE = {  # fault -> (status, body, headers) of the first reply
    "busy": (429, b"", {"retry-after": "0"}),
    "busy_until_a_date": (429, b"", {"retry-after": formatdate(0, usegmt=True)}),
    "busy_without_header": (429, b"", {}),
    "overloaded": (503, b"", {}),
    "broken": (500, b"", {}),
    "bad_gateway": (502, b"<html>", {}),
    "invalid_utf8": (200, b'{"choices": "\xff\xfe"}', {}),
    "no_object": (200, b"[]", {}),
    "empty_body": (200, b"", {}),
}
ALWAYS = {
    "always_broken": (500, b"no"),
    "overflow": (400, b"maximum context length exceeded"),
    "filtered": (400, b'{"error": {"code": "content_filter"}}'),
    "unprocessable": (422, b"this query is not liked"),
    "locked": (401, b"no key"),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: Counter[str]
    bodies: list[dict[str, Any]]
    parameters = 1

    def log_message(self, *arguments: Any) -> None:
        pass

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        entry = {"id": MODEL, "created": time.time(), "owned_by": "faulty", "meta": {"n_params": self.parameters}}
        self._send(200, json.dumps({"data": [entry]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = request.get("prompt") or request["messages"][-1]["content"]
        fault = prompt.split("fault:")[1].split()[0] if "fault:" in prompt else ""
        self.seen[prompt] += 1
        self.bodies.append(request)
        first = self.seen[prompt] == 1
        if fault == "repeats_key":
            return self._send(401, f"wrong key: {self.headers['authorization']}".encode())
        if fault in ALWAYS:
            return self._send(*ALWAYS[fault])
        if first and fault in ONCE:
            return self._send(*ONCE[fault])
        if first and fault in ("cut", "half_closed", "stall", "trickle"):
            return self._break_off(fault)
        if fault == "crowded":
            return self._crowded(self._reply(request, prompt, ""))
        if fault == "slow":
            time.sleep(0.2)
        reply = self._reply(request, prompt, fault if first or not fault.startswith("at_first_") else "")
        return self._send(200, json.dumps(reply).encode())

    def _reply(self, request: dict[str, Any], prompt: str, fault: str) -> dict[str, Any]:
        count, last = request.get("n", 1), prompt.removesuffix("Response: ").split()[-1]
        choices: list[dict[str, Any]] = [
            {"index": index, "text": f"<answer>{last} {index}</answer>", "finish_reason": "stop"}
            for index in reversed(range(count))
        ]
        choice = choices[0]
        if "messages" in request:
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        model = "another" if fault == "other_model" else MODEL + "-2026" if fault == "dated_model" else MODEL
        if fault in ("no_choices", "at_first_no_choices"):
            choices = choices[:-1]
        if fault == "at_first_duplicated":
            choices = choices * 2
        changes: dict[str, dict[str, Any]] = {
            "null_content": {"text": None},
            "no_text": {"text": ""},
            "long": {"finish_reason": "length"},
            "at_first_aborted": {"finish_reason": "abort"},
            "at_first_unfinished": {"finish_reason": None},
            "nan": {"logprobs": {"content": [{"logprob": float("nan")}]}},
            "infinite": {"logprobs": {"content": [{"logprob": float("-inf")}]}},
            "logprobs": {"logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}},
            "half_character": {"text": "so \ud83d"},
            "refusing": {"text": None, "message": {"refusal": "I will not."}},
        }
        choice.update(changes.get(fault, {}))
        if fault == "thoughtful":
            choice["message"]["reasoning_content"] = "2+2"
        return {"model": model, "choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 5 * count}}

    def _break_off(self, fault: str) -> None:
        self.close_connection = True
        self.send_response(200)
        if fault == "half_closed":
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b'4\r\n{"ch\r\n')
            self.connection.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            return
        self.send_header("content-length", "1000")
        self.end_headers()
        if fault == "cut":
            self.wfile.write(b'{"choices": [')
        for _ in range(60 if fault in ("stall", "trickle") else 0):  # longer than a test's limit per attempt
            time.sleep(0.1)
            if fault == "trickle":
                self.wfile.write(b" ")

    def _crowded(self, reply: dict[str, Any]) -> None:
        self.seen["running"] += 1
        try:
            if self.seen["running"] > CAPACITY:
                return self._send(429, b"")
            time.sleep(0.01)
            return self._send(200, json.dumps(reply).encode())
        finally:
            self.seen["running"] -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away are part of the tests


def _server(port: int, parameters: int = 1) -> _Server:
    handler = type("Handler", (_Handler,), {"seen": Counter(), "bodies": [], "parameters": parameters})
    return _Server(("127.0.0.1", port), handler)


@contextmanager
def faulty_server() -> Iterator[str]:
    """Serve on a free loopback port; yields the base url."""
    with recording_server() as (url, _):
        yield url


@contextmanager
def recording_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The same; yields also the bodies of all requests so far."""
    server = _server(0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.RequestHandlerClass.bodies
    finally:
        server.shutdown()


if __name__ == "__main__":
    _server(int(sys.argv[1]), int(sys.argv[2])).serve_forever()
