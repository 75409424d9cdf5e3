"""Resolves the name of a model: the included checkpoint, a directory, or a repo id on the Hugging Face Hub."""

import re
from pathlib import Path

from stella_jax.errors import StellaError, first_line, quoted, short_repr
from stella_jax.storage.location import URL

TINY = Path(__file__).parents[1] / "tiny"
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# JSON, weights and tokenizer files; never pickles, never Python.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md")
# Exports for other runtimes.
IGNORED = ("onnx/*", "openvino/*", "*.msgpack")


def resolve(
    name: str | Path,
    revision: str | None = None,
    *,
    cache_folder: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The directory of a checkpoint: "tiny", an existing directory, or a repo id such as "org/name".

    A repo is downloaded into the Hub's cache, or found there when offline.

    Args:
      name: the name to resolve.
      revision: branch, tag or commit of a repo.
      cache_folder: folder for downloads; None is the Hub's own cache.
      local_files_only: use only the cache, and download nothing.
      token: for a private repo; None is the token of the Hub's own login, False means none.

    Raises:
      StellaError: there is no such checkpoint, or it cannot be downloaded.
    """
    for argument, value, kinds in (
        ("revision", revision, str | None),
        ("cache_folder", cache_folder, str | Path | None),
        ("token", token, str | bool | None),
    ):
        if not isinstance(value, kinds) or "\0" in str(value):
            raise StellaError(f"{argument} must be a text without NUL characters, not {short_repr(value)}.")
    path = TINY if isinstance(name, str) and name == "tiny" else _existing(name)
    if path:
        if revision is not None:
            raise StellaError(
                f"{quoted(name)}: a local checkpoint has no revisions; leave out revision {short_repr(revision)}."
            )
        return path
    if isinstance(name, str) and REPO_ID.fullmatch(name):
        return _download(name, revision, cache_folder, local_files_only, token)
    if isinstance(name, str) and URL.match(name):
        raise StellaError(
            f"{quoted(name)}: a URL, but a model is a local directory or a repo id; copy it to this machine."
        )
    raise StellaError(f"{quoted(name)}: not a directory, not a repo id such as 'org/name' and not 'tiny'.")


def _existing(name: str | Path) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name != "" and path.exists() else None
    except (TypeError, ValueError, OSError, RuntimeError):  # not a path, NUL, too long, no such user
        return None


def _download(
    repo_id: str,
    revision: str | None,
    cache_folder: str | Path | None,
    local_files_only: bool,
    token: str | bool | None,
) -> Path:
    # Imported here, since importing it takes time and local checkpoints do not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=cache_folder,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=list(PATTERNS),
                ignore_patterns=list(IGNORED),
            )
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        why = "local_files_only forbids a download" if local_files_only else "the Hub cannot be reached"
        raise StellaError(
            f"{repo_id}: not a directory, not in the Hub's cache, and {why}; download it first, or pass a directory."
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise StellaError(
            f"{repo_id}: revision {revision or 'main'} could not be downloaded ({first_line(error)})."
        ) from error
