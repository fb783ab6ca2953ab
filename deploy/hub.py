"""Models of the Hugging Face hub, by commit: what is served must be the same tomorrow."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import ModelError

PREFIX = "hf:"
NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
WANTED_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Nothing that would run code when loaded, and none of the same weights in another format."""
UNWANTED_FILES = ("*/*", "consolidated*.safetensors")
MAX_REASON_CHARS = 300
"""Of the hub's own words, which may be pages."""


class Hub(Protocol):
    """Where models come from."""

    def commit(self, repo: str, revision: str | None) -> str:
        """What a branch, a tag, or the default branch points to now."""

    def download(self, repo: str, commit: str, folder: Path) -> None:
        """Put the WANTED_FILES of one commit into `folder`, going on with what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceHub:
    """The real one; `huggingface_hub` reads HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE."""

    endpoint: str | None = None
    """None: HF_ENDPOINT, else huggingface.co."""

    def commit(self, repo: str, revision: str | None) -> str:
        """See Hub."""
        from huggingface_hub import HfApi

        try:
            return str(HfApi(endpoint=self.endpoint).model_info(repo, revision=revision).sha)
        except Exception as error:  # its own, those of its HTTP library, and OSError
            raise _unreachable(repo, error) from error

    def download(self, repo: str, commit: str, folder: Path) -> None:
        """See Hub."""
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(
                repo,
                revision=commit,
                local_dir=folder,
                allow_patterns=list(WANTED_FILES),
                ignore_patterns=list(UNWANTED_FILES),
                endpoint=self.endpoint,
            )
        except Exception as error:  # as above
            raise _unreachable(repo, error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """One repository at one commit."""

    repo: str
    commit: str

    @property
    def folder_name(self) -> str:
        """Of its checkpoint in the cache."""
        return f"{self.repo.replace('/', '--')}@{self.commit[:12]}"


def parse_hub_model(text: str, hub: Hub) -> HubModel:
    """`hf:ORG/NAME@COMMIT`. Raises ModelError for anything that may move, naming what to write."""
    match = NAME.fullmatch(text)
    if match is None:
        raise ModelError(f"{text}: a model of the hub is hf:ORG/NAME@COMMIT")
    repo, revision = match["repo"], match["revision"]
    if revision is None or not COMMIT.fullmatch(revision):
        commit = hub.commit(repo, revision)
        raise ModelError(
            f"{text}: {revision or 'the default branch'} may move; pin it: {PREFIX}{repo}@{commit}"
        )
    return HubModel(repo=repo, commit=revision)


def _unreachable(repo: str, error: Exception) -> ModelError:
    told = " ".join(str(error).split())[:MAX_REASON_CHARS] or type(error).__name__
    return ModelError(
        f"cannot get {repo} from the Hugging Face hub: {told}; without a network, name a "
        "model folder or a .gguf file"
    )
