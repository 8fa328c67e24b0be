"""`deepdistill pin`: the commits of all hub repositories of a recipe, written into its file."""

from dataclasses import dataclass
from pathlib import Path

from deepdistill_assets.hub_revisions import HubName, hub_names, with_commits
from deepdistill_assets.recipe import checked_recipe, recipe_path
from deepdistill_resources.errors import DeepDistillError, SourceError
from deepdistill_resources.hub import commit_of


@dataclass(frozen=True)
class Pins:
    """What became of the names of one file: commits by name, and why the others have none."""

    file: Path
    commits: dict[HubName, str]
    refused: dict[HubName, str]
    pinned_before: int


def pin(recipe: str, to: Path | None = None) -> Pins:
    """Ask the hub for the commit of every branch and tag that a recipe names, and write them into it.

    Args:
        recipe: name or YAML file.
        to: the file that is written; None: the recipe's own.

    Raises:
        DeepDistillError: the recipe cannot be read or the file cannot be written.
    """
    path = recipe_path(recipe)
    text = path.read_text(encoding="utf-8")
    checked_recipe(text)
    names = hub_names(text)
    asked = {name: _asked(name) for name in names if not name.pinned}
    commits = {name: commit for name, (commit, _) in asked.items() if commit is not None}
    refused = {name: reason for name, (_, reason) in asked.items() if reason is not None}
    target = to or path
    try:
        if commits or to is not None:
            target.write_text(with_commits(text, commits), encoding="utf-8")
    except OSError as error:
        raise DeepDistillError(f"{target} cannot be written: {error.strerror}.", "name another file: --to.") from error
    return Pins(target, commits, refused, len(names) - len(asked))


def _asked(name: HubName) -> tuple[str | None, str | None]:
    """Return the commit, or why there is none."""
    try:
        return commit_of(name.kind, name.repository, name.revision), None
    except SourceError as error:
        return None, str(error)
