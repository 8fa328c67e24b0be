"""What the docs tell a user to type is run, and what they show is loaded."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from deepdistill_assets.recipe import Recipe, load_recipe, recipe_names
from jobs.build import build_definitions
from jobs.cli import _parser, main
from jobs.dagster_home import prepare
from jobs.runner import main_selection

CLONE = Path(__file__).parents[2]
PAGES = [CLONE / "README.md", CLONE / "CONTRIBUTING.md", *sorted((CLONE / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
PROGRAM = r"[\w./-]*(?:deepdistill|python(?:3\.11)?|pip)|make|dagster(?:-webserver)?|docker|kubectl|helm|vllm|ray|cp"
INLINE = re.compile(rf"`((?:[A-Z_]+=\S+ )?(?:{PROGRAM}) [^`]+)`")
# Commands that a test or CI runs: how they begin, the file that runs them, and what stands in it.
ELSEWHERE = {
    "make run": (".ci/run", "make run"),
    "make test": (".ci/run", "make test"),
    "make lint": (".ci/run", "make lint"),
    "make ui": ("tests/daemon/test_ui_command.py", '"ui"'),
    "UPDATE_SNAPSHOT=1 make test": ("tests/jobs/test_definitions.py", "UPDATE_SNAPSHOT"),
    "docker compose -f docker/compose.yaml": ("tests/daemon/test_compose_stack.py", "compose.yaml"),
    "cp docker/env.example docker/.env": ("tests/docker/test_docker_files.py", "env.example"),
    "docker compose -f docker/compose.yaml --profile ray": ("tests/docker/test_ray_services.py", "ray-worker"),
    "ray start --": ("tests/docker/test_ray_services.py", 'services.start("ray-head")'),
    "dagster-webserver --read-only": ("tests/daemon/test_viewer.py", "--read-only"),
}
# Commands that cannot be run here: how they begin, and why.
BY_HAND = {
    "helm": "no helm and no cluster; the values are checked by tests/docker/test_kubernetes.py",
    "kubectl port-forward": "no cluster",
    "kubectl apply": "no cluster; the manifest is checked by tests/docker",
    "kubectl logs": "no cluster",
    "ray get-auth-token": "writes into the home directory; tests have a token of their own",
    "export": "sets variables of the shell",
    "python3.11 -m venv vllm-venv": "vLLM is too large for CI",
    "vllm-venv/bin/": "vLLM is too large for CI",
    "VLLM_CPU_KVCACHE_SPACE=1 vllm-venv/bin/python": "vLLM is too large for CI",
    "vllm serve": "vLLM is too large for CI",
    "DEEPDISTILL_TEST_SERVER=": "the same tests run in CI on a llama.cpp server",
    "python -m venv DIR": "packages of a comparison that is not part of the project",
    "DIR/bin/pip": "packages of a comparison that is not part of the project",
    "pip install": "fetches a package; `make install` installs the lock",
}


def blocks(*languages):
    return [(page.name, text) for page in PAGES for kind, text in FENCED.findall(page.read_text()) if kind in languages]


def commands():
    """Every command line of the docs: (page, words), each once."""
    fenced = blocks("", "sh", "bash", "console")
    lines = [(page, line) for page, text in fenced for line in text.replace("\\\n", " ").splitlines()]
    lines += [(page.name, code) for page in PAGES for code in INLINE.findall(page.read_text())]
    found = [(page, shlex.split(line, comments=True)) for page, line in lines]
    return list({tuple(words): (page, words) for page, words in found if words}.values())


def ours():
    return [(page, words[1:]) for page, words in commands() if words[0].endswith("deepdistill")]


def scripts():
    return [words[1:] for _, words in commands() if words[0] == "python" and words[1].startswith("tests/")]


def named(value):
    return value if isinstance(value, str) else "-".join(value).replace("/", "_")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A directory as a user's, with a small recipe of one's own, and the environment that chooses it."""
    directory = tmp_path_factory.mktemp("desk")
    recipe = yaml.safe_load((CLONE / "tests" / "end_to_end" / "small.yaml").read_text())
    options = {
        "path": str(directory / "questions.jsonl"),
        "mapping": {"query": "question", "reference_answer": "answer"},
    }
    recipe["sources"]["gsm8k"] = {"category": "math", "license": "MIT", "reader": "file", "options": options}
    questions = ["What is 8 + 8?", 3, *[f"What is {number} + 9?" for number in range(38)]]
    lines = [json.dumps({"question": question, "answer": "16"}) for question in questions]
    (directory / "questions.jsonl").write_text("\n".join(lines))
    for _, words in commands():  # every recipe of one's own that the docs name
        for name in words:
            if name.endswith(".yaml") and "/" not in name:
                (directory / name).write_text(yaml.safe_dump(recipe))
    return directory


@pytest.fixture
def at_the_desk(desk, monkeypatch):
    for name in ("DEEPDISTILL_PROFILE", "DEEPDISTILL_LAKE", "DEEPDISTILL_MODELS", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEEPDISTILL_HOME", str(desk / "home"))
    monkeypatch.setenv("DEEPDISTILL_RECIPE", str(desk / "mine.yaml"))
    monkeypatch.chdir(desk)
    return desk


@pytest.mark.parametrize(("page", "words"), ours(), ids=named)
def test_every_deepdistill_command_of_the_docs_is_run(page, words, at_the_desk, capsys):
    """As it stands; of a run only the first asset is made, the rest is run by .ci/run and tests/end_to_end.

    `ui` (it stays) and `pin` (it asks the hub) are only parsed here: test_ui_command.py and test_pin.py run them.
    """
    if words[0] in ("ui", "pin"):
        assert _parser().parse_args(words).command
        return
    if words[0] == "run":
        options = _parser().parse_args(words)
        graph = build_definitions("embedded", options.recipe).resolve_asset_graph()
        assert main_selection(graph, options.select)
        place = words.index("--select") if "--select" in words else len(words)
        words = [*words[:place], "--select", "raw_queries"]
    elif words[0] in ("why", "quarantine"):
        assert main(["run", "--select", "raw_queries"]) == 0
    assert main(words) == 0, f"{page}: deepdistill {shlex.join(words)}\n{capsys.readouterr()}"


@pytest.mark.parametrize("words", scripts(), ids=named)
def test_every_script_of_the_docs_has_the_options_that_are_told(words):
    script, options = CLONE / words[0], {word for word in words if word.startswith("--")}
    if "argparse" not in script.read_text():  # --help would do all its work
        assert script.is_file() and not options
        return
    environment = {**os.environ, "PYTHONPATH": str(CLONE)}
    helped = subprocess.run([sys.executable, script, "--help"], env=environment, capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    assert not {option for option in options if option not in helped.stdout}


def test_kubectl_makes_the_secrets(tmp_path):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    (tmp_path / "postgresql-password").write_text("chosen")
    (tmp_path / "deepdistill.env").write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\nDAGSTER_POSTGRES_URL=c\n")
    made = {}
    for _, words in commands():
        if words[:3] == ["kubectl", "create", "secret"]:
            dry = [kubectl, *words[1:], "--dry-run=client", "-o", "yaml"]
            secret = yaml.safe_load(subprocess.run(dry, cwd=tmp_path, capture_output=True, check=True).stdout)
            made[secret["metadata"]["name"]] = set(secret["data"])
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DAGSTER_POSTGRES_URL"}
    assert made == {"dagster-postgresql-secret": {"postgresql-password"}, "deepdistill": keys}


def test_a_pool_is_raised_as_the_docs_say(tmp_path):
    (words,) = [words for _, words in commands() if words[:3] == ["dagster", "instance", "concurrency"]]
    environment = {**os.environ, "DAGSTER_HOME": str(prepare(tmp_path))}
    subprocess.run([sys.executable, "-m", *words], env=environment, check=True, capture_output=True)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == 4


def test_every_command_of_the_docs_is_run_somewhere_or_says_why_not():
    unknown = []
    for page, words in commands():
        line = shlex.join(words).replace("'", "")
        here = words[0].endswith("deepdistill") or words[1:] in scripts()
        here = here or line.startswith(("kubectl create secret", "dagster instance concurrency"))
        if not here and not line.startswith((*ELSEWHERE, *BY_HAND)):
            unknown.append(f"{page}: {line}")
    assert not unknown, unknown


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(command):
    file, text = ELSEWHERE[command]
    assert text in (CLONE / file).read_text()


def test_the_recipe_in_20_lines_loads_as_it_stands(tmp_path):
    (text,) = [text for page, text in blocks("yaml") if page == "recipes.md" and text.startswith("name: mine")]
    assert len(text.splitlines()) <= 20
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assets = {key.path[-1] for asset in build_definitions("embedded", recipe).assets for key in asset.keys}
    assert {"raw_queries", "stage2_checkpoint", "scoreboard"} <= assets


def test_every_other_yaml_of_the_recipe_page_has_keys_that_a_recipe_has():
    for page, text in blocks("yaml"):
        if page == "recipes.md":
            assert set(yaml.safe_load(text)) <= set(Recipe.model_fields), text


def test_links_of_the_docs_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_into_a_page_name_a_heading_of_it():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!http)([^)#]+)#([^)]+)\)", page.read_text()):
            headings = re.findall(r"^#+ (.+)$", (page.parent / target).read_text(), re.M)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], (
                f"{page.name}: {target}#{anchor}"
            )


def test_pictures_are_small():
    for picture in (CLONE / "docs").glob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name


def test_every_asset_of_every_recipe_is_explained():
    explained = set(re.findall(r"^\| `(\w+)` \|", (CLONE / "docs" / "assets.md").read_text(), re.M))
    graphs = [build_definitions("embedded", name).resolve_asset_graph() for name in recipe_names()]
    there = {key.path[-1] for graph in graphs for key in graph.get_all_asset_keys()}
    assert explained == there, explained ^ there


def test_the_tests_that_the_recipes_page_names_exist():
    named = set(re.findall(r"`(test_\w+)`", (CLONE / "docs" / "recipes.md").read_text()))
    sources = [file.read_text() for file in (CLONE / "tests").rglob("test_*.py")]
    there = {name for text in sources for name in re.findall(r"def (test_\w+)", text)}
    assert len(named) > 30 and not named - there, named - there
