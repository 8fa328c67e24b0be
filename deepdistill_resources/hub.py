"""Commits of Hugging Face repositories: a branch moves on, a commit is what a result can be repeated with."""

import re
from typing import Literal

from deepdistill_resources.errors import SourceError

REACH_SECONDS = 15.0
COMMIT = re.compile(r"[0-9a-f]{40}")
PIN_FIX = "`deepdistill pin` writes the commits into the recipe"


def is_commit(revision: str) -> bool:
    """Whether a revision is a whole commit id, which no push can move."""
    return COMMIT.fullmatch(revision) is not None


def unpinned(repository: str, revision: str) -> dict[str, str]:
    """Return a warning, as metadata, where a revision is a branch or a tag; else nothing."""
    if is_commit(revision):
        return {}
    return {"unpinned": f"{repository}@{revision} is no commit, so that it may change under this name. {PIN_FIX}."}


def commit_of(kind: Literal["dataset", "model"], repository: str, revision: str) -> str:
    """Return the commit that a branch or tag of a repository stands for now, asking the hub (HF_ENDPOINT).

    Raises:
        SourceError: the hub cannot be reached, or does not show this repository or revision.
    """
    from huggingface_hub import HfApi

    try:
        found = HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=REACH_SECONDS).sha
    except Exception as error:  # the hub client raises many kinds
        reason = (str(error) or "no reason").splitlines()[0][:200]
        raise SourceError(
            f"{kind} {repository}@{revision}: {type(error).__name__}: {reason}",
            "check its name and the network; a gated one needs its terms accepted and HF_TOKEN.",
        ) from error
    if found is None or not is_commit(found):
        raise SourceError(f"{kind} {repository}@{revision}: the hub names no commit ({found!r}).")
    return found
