"""What the docs tell a user to type is run, and what they show is loaded."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from deepdistill_assets.recipe import Recipe, load_recipe
from jobs.build import build_definitions
from jobs.cli import _parser

CLONE = Path(__file__).parents[2]
PAGES = [CLONE / "README.md", CLONE / "CONTRIBUTING.md", *sorted((CLONE / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
# Run by a test of their own: make by .ci/run, compose by test_compose_stack.py, the viewer by test_viewer.py.
ELSEWHERE = (
    "make",
    "docker",
    "cp",
    "python",
    ".venv/bin/python",
    "pip",
    "dagster-webserver",
    "kubectl",
    "helm",
    "ray",
    "export",
)


def blocks(language):
    return [(page.name, text) for page in PAGES for kind, text in FENCED.findall(page.read_text()) if kind == language]


def commands():
    lines = [(page, line) for kind in ("", "sh", "bash") for page, text in blocks(kind) for line in text.splitlines()]
    lines += [
        (page.name, code)
        for page in PAGES
        for code in re.findall(r"`((?:\.venv/bin/)?deepdistill [^`|]+)`", page.read_text())
    ]
    return [(page, words) for page, line in lines if (words := shlex.split(line, comments=True))]


def ours():
    return [(page, words[1:]) for page, words in commands() if words[0].endswith("deepdistill")]


@pytest.mark.parametrize(
    ("page", "words"), ours(), ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_every_deepdistill_command_of_the_docs_exists(page, words):
    try:
        assert _parser().parse_args(words).command
    except SystemExit:
        pytest.fail(f"{page}: deepdistill {shlex.join(words)}")


def test_every_other_command_of_the_docs_is_run_somewhere():
    unknown = {words[0] for _, words in commands()} - set(ELSEWHERE)
    assert not {word for word in unknown if not word.endswith("deepdistill")}, unknown


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
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tests_that_the_recipes_page_names_exist():
    named = set(re.findall(r"`(test_\w+)`", (CLONE / "docs" / "recipes.md").read_text()))
    sources = [file.read_text() for file in (CLONE / "tests").rglob("test_*.py")]
    there = {name for text in sources for name in re.findall(r"def (test_\w+)", text)}
    assert len(named) > 30 and not named - there, named - there
