"""Uploads a folder to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from sslkit.errors import SslkitError


def check() -> None:
    """Raise SslkitError if the user is not logged in."""
    if huggingface_hub.get_token() is None:
        raise SslkitError(
            f"you are not logged in to {constants.ENDPOINT}: run `hf auth login`, or set HF_TOKEN"
        )


def lines(repository: str) -> str:
    """Return Python code that downloads a repository and sets `folder`."""
    return (
        f"from huggingface_hub import snapshot_download\nfolder = snapshot_download({repository!r})"
    )


def upload(folder: Path, repository: str, *, public: bool) -> str:
    """Upload every file of a folder, and return the address of the repository.

    A new repository is private unless `public`; the visibility of an existing one does not change.
    Raises SslkitError if the upload fails.
    """
    api = huggingface_hub.HfApi(library_name="sslkit")
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Upload encoder with sslkit"
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SslkitError(
            f"cannot upload to {constants.ENDPOINT}/{repository}: {reason}"
        ) from error
    return str(made)
