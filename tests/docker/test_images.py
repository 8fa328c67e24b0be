"""The commands of the Dockerfiles, run on this machine in what the build would see of the clone."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CLONE = Path(__file__).parents[2]
DOCKER = CLONE / "docker"
SECRETS = ("docker/.env", "deepdistill.env", "postgresql-password")  # what README and docs let a user write
# How a command begins, and what it is given here so that this machine stays as it is.
HERE = {
    "useradd": ["--prefix", "{root}"],
    "apt-get update": ["--print-uris"],
    "apt-get install": ["--simulate"],
    "rm": [],
    "mkdir": [],
    "chown": [],
    "pip install --no-deps --require-hashes": ["--dry-run", "--no-index"],  # `make install` fetched what it names
    "pip install --no-deps --no-build-isolation --editable": ["--prefix", "{root}", "--ignore-installed"],  # ours stays
}
RESOLVED_IN_CI = "pip install --editable"  # of the GPU image: vLLM is too large to be installed


def instructions(image, kind):
    text = (DOCKER / image).read_text().replace("\\\n", " ")
    return re.findall(rf"^{kind} (.+)$", text, re.M)


def commands(image):
    return [words for line in instructions(image, "RUN") for words in _split(shlex.split(line))]


def _split(words):
    while "&&" in words:
        place = words.index("&&")
        yield words[:place]
        words = words[place + 1 :]
    yield words


def run_here():
    found = [words for image in ("Dockerfile", "Dockerfile.gpu") for words in commands(image)]
    lines = dict.fromkeys(shlex.join(words) for words in found)
    return [line for line in lines if not line.startswith(RESOLVED_IN_CI)]


def left_out(path):
    """Whether .dockerignore keeps a path out of the build."""
    lines = [line for line in (CLONE / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    patterns = [re.escape(line).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*") for line in lines]
    return any(re.fullmatch(rf"{pattern}(?:/.*)?", path) for pattern in patterns)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root directory with what the images have there: the files of the clone that the build sees, in /app."""
    root = tmp_path_factory.mktemp("image")
    for directory in ("app", "etc", "home", "data", "var/lib/apt/lists"):
        (root / directory).mkdir(parents=True)
    for name in ("passwd", "group", "shadow", "gshadow"):
        (root / "etc" / name).touch()
    (root / "var/lib/apt/lists/list").touch()

    def unseen(directory, names):
        place = Path(directory).relative_to(CLONE)
        return [name for name in names if left_out((place / name).as_posix())]

    shutil.copytree(CLONE, root / "app", ignore=unseen, dirs_exist_ok=True)
    return root


def test_no_secret_that_the_docs_let_a_user_write_gets_into_an_image_or_into_git():
    kept_out = {name for name in SECRETS if left_out(name)}
    ignored = subprocess.run(["git", "check-ignore", *SECRETS], cwd=CLONE, capture_output=True, text=True).stdout
    assert kept_out == set(ignored.split()) == set(SECRETS)
    assert not left_out("docker/env.example") and not left_out("jobs/cli.py")
    written = "".join(page.read_text() for page in (CLONE / "docs").glob("*.md"))
    assert all(name in written for name in SECRETS)


@pytest.mark.slow
@pytest.mark.parametrize("line", run_here())
def test_a_command_of_the_images_does_its_work(root, line):
    known = next((begin for begin in HERE if line.startswith(begin)), None)
    assert known, f"{line} is not run here; add it to HERE"
    words = shlex.split(line)
    if words[0] in ("useradd", "chown") and os.getuid():
        pytest.skip("only root can do it")
    if words[0] != "pip" and not shutil.which(words[0]):
        pytest.skip(f"this machine has no {words[0]}")
    begin = [sys.executable, "-m", "pip"] if words[0] == "pip" else words[:1]
    rest = [re.sub(r"^/(data|var)\b", rf"{root}/\1", word) for word in words[1:]]
    added = [option.format(root=root) for option in HERE[known]]
    if words[0] != "pip":  # nothing outside of the test's directory is touched
        assert all(word.startswith(str(root)) for word in rest if word.startswith("/")), rest
    shell = shlex.join([*begin, *rest, *added]).replace("*'", "'*")  # a star is the shell's
    done = subprocess.run(["sh", "-c", shell], cwd=root / "app", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if words[0] == "rm":
        assert not any((root / "var/lib/apt/lists").iterdir())
    if "--editable" in words:
        (program,) = root.rglob("bin/deepdistill")
        assert "jobs.cli" in program.read_text()


def test_the_gpu_image_installs_what_ci_resolves():
    (words,) = [words for words in commands("Dockerfile.gpu") if shlex.join(words).startswith(RESOLVED_IN_CI)]
    extras = re.search(r"\.\[(.+)\]", words[-1])[1].split(",")
    ci = (CLONE / ".ci" / "run").read_text()
    assert sorted(re.findall(r"--extra (\w+)", ci)) == sorted(extras)


@pytest.mark.parametrize("image", ["Dockerfile", "Dockerfile.gpu"])
def test_an_image_starts_and_is_watched_by_commands_of_compose_which_a_test_runs(image):
    code = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["code"]
    (started,) = instructions(image, "CMD")
    (watched,) = instructions(image, "HEALTHCHECK")
    assert shlex.join(yaml.safe_load(started)) in code["command"]
    assert yaml.safe_load(watched.partition("CMD ")[2]) == code["healthcheck"]["test"][1:]
