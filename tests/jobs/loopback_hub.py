"""A hub on this machine: it answers for the repositories that it is given, with a commit for each branch."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def loopback_hub(commits: Mapping[str, str]) -> Iterator[str]:
    """Serve `{"datasets/owner/name/revision/main": commit, ...}` below /api/; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/")
            commit = commits.get(path)
            name = path.split("/", 1)[-1].partition("/revision/")[0]
            body = json.dumps({"id": name, "modelId": name, "sha": commit} if commit else {"error": "not found"})
            self.send_response(200 if commit else 404)
            if commit is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
