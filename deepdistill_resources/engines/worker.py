"""A decoding process: reads jobs from its standard input, writes responses to its standard output, one JSON a line.

It keeps the model of its last job, so the next job on the same weights starts at once. It ends with its parent: when
the pipe closes, the process exits, also in the middle of a job.
"""

import json
import os
import queue
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    """Work until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not mix with the replies
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    loaded = _Loaded()
    while True:
        job = jobs.get()
        try:
            loaded.run(job, replies)
        except Exception as error:  # noqa: BLE001 - a job's failure is reported, the process goes on
            _send(replies, {"error": f"{type(error).__name__}: {error}"})
        _send(replies, {"done": True})


def _read_jobs(jobs: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


class _Loaded:
    """The model that is in memory."""

    def __init__(self) -> None:
        self.identity: tuple[str, str, int] | None = None
        self.decoder: Any = None

    def run(self, job: dict[str, Any], replies: TextIO) -> None:
        decoder = self._decoder(job)
        if job["kind"] == "perplexities":
            _send(replies, {"perplexities": decoder.perplexities(job["texts"])})
            return
        from deepdistill_resources.engines.base import SamplingParameters
        from deepdistill_resources.engines.decoding import DecodeRequest

        requests = [DecodeRequest(key, tuple(tokens), seed) for key, tokens, seed in job["requests"]]
        started = time.monotonic()
        for response in decoder.decode(requests, SamplingParameters(**job["sampling"])):
            _send(replies, {"response": asdict(response)})
        _send(replies, {"worked": time.monotonic() - started})

    def _decoder(self, job: dict[str, Any]) -> Any:
        identity = (job["path"], job["revision"], job["batch_size"])
        if identity != self.identity:
            import torch

            from deepdistill_resources.engines.decoding import Decoder

            torch.set_num_threads(1)
            self.identity, self.decoder = None, None  # frees the old model before the new one is loaded
            self.decoder = Decoder(Path(job["path"]), batch_size=job["batch_size"])
            self.identity = identity
        return self.decoder


if __name__ == "__main__":
    main()
