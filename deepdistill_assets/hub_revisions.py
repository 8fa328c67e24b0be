"""Hub repositories that a recipe file names, and their commits written into it; comments and layout stay."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from deepdistill_assets.recipe import Recipe, checked_recipe
from deepdistill_resources.errors import RecipeError
from deepdistill_resources.hub import is_commit

Kind = Literal["dataset", "model"]
NAMES: dict[str, Kind] = {"dataset": "dataset", "repository": "model"}  # the keys that name a repository
DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class HubName:
    """A repository at the place in the file where it is named.

    Args:
        revision: as written; `main` where none is.
        start: where in the text the revision begins, or goes.
        end: where it ends; `start` where none is written.
        before: what must be written before the commit, with a key where none is written.
    """

    kind: Kind
    repository: str
    revision: str
    start: int
    end: int
    before: str

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit."""
        return is_commit(self.revision)


def hub_names(text: str) -> list[HubName]:
    """Return the hub repositories of a recipe file in the order of the text; local directories are left out."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found = [name for node in _mappings(root, set()) for name in _names(node, text)] if root else []
    return sorted(found, key=lambda name: name.start)


def with_commits(text: str, commits: Mapping[HubName, str]) -> str:
    """Return the text of a recipe with the commits of some of its names in place.

    Raises:
        RecipeError: the result is no recipe, or another one; then the file must be edited by hand.
    """
    written = text
    for name in sorted(commits, key=lambda name: -name.start):
        # In quotes, since YAML reads a commit without a letter as a number.
        written = f'{written[: name.start]}{name.before}"{commits[name]}"{written[name.end :]}'
    if _without_revisions(checked_recipe(written)) != _without_revisions(checked_recipe(text)):
        raise RecipeError("the commits cannot be written into this file.", "write `revision` by hand where it is read.")
    return written


def _mappings(node: yaml.Node, seen: set[int]) -> Iterator[yaml.MappingNode]:
    """Yield every mapping once, however often it is referred to."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value, seen)


def _names(node: yaml.MappingNode, text: str) -> Iterator[HubName]:
    entries = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    for key_name, kind in NAMES.items():
        key, value = entries.get(key_name, (None, None))
        if key is None or not isinstance(value, yaml.ScalarNode) or Path(value.value).is_dir():
            continue
        _, revision = entries.get("revision", (None, None))
        if revision is not None:
            start, end = revision.start_mark.index, revision.end_mark.index
            yield HubName(kind, value.value, str(revision.value), start, end, "")
        elif node.flow_style:
            place = value.end_mark.index
            yield HubName(kind, value.value, DEFAULT_REVISION, place, place, ", revision: ")
        else:
            line_end = text.find("\n", value.end_mark.index)
            place = len(text) if line_end < 0 else line_end
            before = "\n" + " " * key.start_mark.column + "revision: "
            yield HubName(kind, value.value, DEFAULT_REVISION, place, place, before)


def _without_revisions(recipe: Recipe) -> object:
    def cleaned(value: object) -> object:
        if isinstance(value, dict):
            return {key: cleaned(item) for key, item in value.items() if key != "revision"}
        return [cleaned(item) for item in value] if isinstance(value, (list, tuple)) else value

    return cleaned(recipe.model_dump(mode="json"))
