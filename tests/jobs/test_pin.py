import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from loopback_hub import loopback_hub

from deepdistill_assets.hub_revisions import hub_names, with_commits
from deepdistill_assets.recipe import load_recipe, recipe_names, recipe_path
from deepdistill_resources.errors import RecipeError, SourceError
from deepdistill_resources.hub import commit_of, unpinned

CLONE = Path(__file__).parents[2]
ONE, TWO, THREE = "1" * 40, "2" * 40, "3" * 40


def small_recipe() -> str:
    """The digits recipe with a source, a shared source, a benchmark and a model of the hub."""
    text = recipe_path("digits").read_text()
    sources = """sources:
  flow: {category: math, license: MIT, reader: hub, options: {dataset: a/flow, mapping: {query: q}}} # stays
  block: &block # stays, too
    category: math
    license: MIT
    reader: hub
    options: &options
      dataset: a/block # the branch moves
      config: one
      mapping: {query: q}
  merged:
    <<: *block
    options: {<<: *options, config: two}
  tagged:
    category: math
    license: MIT
    reader: hub
    options: {revision: "v1.0", dataset: a/tagged, mapping: {query: q}}
"""
    model = "models:\n  hubbed: {kind: hub, repository: a/model, revision: main, license: MIT}\n"
    return text.replace("sources:\n", sources, 1).replace("models:\n", model, 1)


def test_every_name_is_found_once_with_its_revision():
    found = [(name.kind, name.repository, name.revision) for name in hub_names(small_recipe())]
    assert sorted(found) == [
        ("dataset", "a/block", "main"),
        ("dataset", "a/flow", "main"),
        ("dataset", "a/tagged", "v1.0"),
        ("model", "a/model", "main"),
    ]


def test_commits_go_where_the_revision_is_read_and_nothing_else_changes():
    text = small_recipe()
    names = {name.repository: name for name in hub_names(text)}
    written = with_commits(text, {names["a/flow"]: ONE, names["a/block"]: TWO, names["a/model"]: THREE})
    sources = yaml.safe_load(written)["sources"]
    assert sources["flow"]["options"]["revision"] == ONE
    assert sources["block"]["options"]["revision"] == sources["merged"]["options"]["revision"] == TWO
    assert sources["merged"]["options"]["config"] == "two" and sources["tagged"]["options"]["revision"] == "v1.0"
    assert yaml.safe_load(written)["models"]["hubbed"]["revision"] == THREE
    added = f', revision: "{ONE}"', f'\n      revision: "{TWO}"'
    restored = written.replace(f'"{THREE}"', "main")
    for part in added:
        restored = restored.replace(part, "")
    assert restored == text


def test_pinning_twice_finds_only_commits():
    text = small_recipe()
    written = with_commits(text, dict.fromkeys(hub_names(text), ONE))
    assert all(name.pinned for name in hub_names(written))


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_can_be_pinned(name):
    text = recipe_path(name).read_text()
    names = hub_names(text)
    written = with_commits(text, dict.fromkeys(names, ONE))
    assert [found.repository for found in hub_names(written)] == [found.repository for found in names]
    assert all(found.pinned for found in hub_names(written))
    hubbed = [source for source in load_recipe(name).sources.values() if source.reader == "hub"]
    assert not hubbed or names


def test_a_revision_that_others_refer_to_is_refused():
    text = small_recipe().replace('"v1.0", dataset: a/tagged', "&tag v1.0, dataset: a/tagged, split: *tag")
    with pytest.raises(RecipeError, match=r"not valid YAML|by hand"):
        with_commits(text, dict.fromkeys(hub_names(text), ONE))


def test_only_a_branch_or_tag_is_warned_of():
    assert unpinned("a/b", ONE) == {}
    assert "deepdistill pin" in unpinned("a/b", "main")["unpinned"]


def deepdistill(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(CLONE), **variables}
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_pin_asks_the_hub_and_writes_the_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(small_recipe())
    commits = {
        "datasets/a/flow/revision/main": ONE,
        "datasets/a/block/revision/main": TWO,
        "datasets/a/tagged/revision/v1.0": THREE,
        "models/a/model/revision/main": ONE,
    }
    with loopback_hub(commits) as address:
        done = deepdistill("pin", "--recipe", str(recipe), HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stdout + done.stderr
    names = {name.repository: name.revision for name in hub_names(recipe.read_text())}
    assert names == {"a/flow": ONE, "a/block": TWO, "a/tagged": THREE, "a/model": ONE}
    assert "4 commits written" in done.stdout


def test_what_the_hub_does_not_show_is_named_and_the_others_are_pinned(tmp_path):
    recipe, to = tmp_path / "mine.yaml", tmp_path / "pinned.yaml"
    recipe.write_text(small_recipe())
    with loopback_hub({"datasets/a/flow/revision/main": ONE}) as address:
        arguments = ("pin", "--recipe", str(recipe), "--to", str(to))
        done = deepdistill(*arguments, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert done.returncode == 1
    assert done.stdout.count("not pinned") == 3 and "a/block@main" in done.stdout
    assert recipe.read_text() == small_recipe()
    assert {name.repository for name in hub_names(to.read_text()) if name.pinned} == {"a/flow"}


def test_a_hub_that_cannot_be_reached_is_an_error_with_a_fix(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="a/b@main"):
        commit_of("dataset", "a/b", "main")
