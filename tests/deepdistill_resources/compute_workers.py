"""Workers that behave, stumble, or die; importable by name on every node."""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deepdistill_resources.compute import Worker
from deepdistill_resources.errors import SandboxUnavailable


class Doubler(Worker):
    """Doubles numbers and remembers how many; what it is told to do, it does."""

    def __init__(self, place=None, pause=0.0):
        self.place, self.pause, self.rows = place, pause, 0

    def __call__(self, batch):
        time.sleep(self.pause)
        for number in batch:
            if number == -1:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == -2:
                raise ValueError("minus two")
            if number == -3:
                raise SandboxUnavailable("no tier holds.", "install bubblewrap.")
            if number == -4 and not self.place.joinpath("died").exists():
                self.place.joinpath("died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        self.rows += len(batch)
        if self.place:  # every start of a batch leaves a mark
            self.place.joinpath(f"{batch[0]}-{os.getpid()}-{time.time_ns()}").touch()
        return [2 * number for number in batch]

    def facts(self):
        return {"rows": self.rows, "pid": os.getpid()}

    def close(self):
        if self.place:
            self.place.joinpath(f"closed-{os.getpid()}").touch()


@dataclass(frozen=True)
class OpenDoubler:
    place: str | None = None
    pause: float = 0.0

    def __call__(self):
        return Doubler(Path(self.place) if self.place else None, self.pause)


def _refuse():
    raise SandboxUnavailable("no tier passed.", "install bubblewrap.")


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


refusing, dying = partial(_refuse), partial(_die)


class Unpicklable(Worker):
    def __call__(self, batch):
        return (line for line in batch)


class Large(Worker):
    """Returns as many bytes as it is asked for, so that results lie in the node's object store."""

    def __call__(self, batch):
        return bytes(batch[0])


class Node(Worker):
    """Says on which node it is."""

    def __call__(self, batch):
        time.sleep(0.3)
        import ray

        return ray.get_runtime_context().get_node_id()
