"""One process of `accelerate launch`: reads the job file, trains, and ends when the process that launched it does.

accelerate launch --config_file CONFIG --num_processes N -m deepdistill_resources.trainers.launched_process JOB
"""

import json
import os
import sys
import threading
from pathlib import Path

from deepdistill_resources.errors import DeepDistillError
from deepdistill_resources.trainers.job import run_job
from deepdistill_resources.trainers.launched_trainer import ERROR, LOG


def main(job: Path) -> int:
    """Train what the job file says; returns the exit code."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    first = os.environ.get("RANK", "0") == "0"
    try:
        run_job(job, _say if first else lambda line: None)
    except DeepDistillError as error:
        sys.stdout.write(f"{ERROR}{json.dumps({'message': error.message, 'fix': error.fix})}\n")
        sys.stdout.flush()
        return 1
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{LOG}{line}\n")
    sys.stdout.flush()


def _end_with_launcher() -> None:
    """End this process when the one that launched it is gone (killed): nobody would read the result."""
    os.read(0, 1)  # a pipe that nothing is written to; it ends with the process that holds its other end
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
