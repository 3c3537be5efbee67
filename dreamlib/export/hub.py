"""`dreamlib push`: an exported model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamlib.export.folder import NAMES
from dreamlib.utils.context import say
from dreamlib.utils.errors import ConfigError, DreamlibError

LOGIN = "log in once with `hf auth login`, or set HF_TOKEN (on Colab and Kaggle: as a secret)"


def check_upload(name: str) -> None:
    """ConfigError without the package, a name as the Hub has them, or a token."""
    hub = _hub()
    try:
        hub.utils.validate_repo_id(name)
    except ValueError as error:
        raise ConfigError(f"{name} is no name for a model: {error}") from error
    if "/" not in name:
        raise ConfigError(f"name the model owner/name, not {name}")
    if hub.get_token() is None:
        raise ConfigError(f"the Hub needs a token with the right to write: {LOGIN}")


def push(folder: Path, name: str, *, private: bool = False, dry_run: bool = False) -> str:
    """Upload what `export` wrote as owner/name; the address of the model's page.

    Files of an export that are there and not here are removed there; others are left alone.  The
    token comes from huggingface_hub's usual places and is written nowhere.  `dry_run` only says
    what would go.  ConfigError as `check_upload`, without an exported model, and for a model that
    should be private and is public there; DreamlibError when the Hub refuses or is out of reach.
    """
    files = [each for each in NAMES if (folder / each).is_file()]
    if "README.md" not in files:
        raise ConfigError(f"{folder} holds no exported model: run `dreamlib export` first")
    for each in files:
        say(f"  {each:45} {(folder / each).stat().st_size / 1e6:9.2f} MB")
    if dry_run:
        return f"{len(files)} files would go to {name}; nothing was sent"
    check_upload(name)
    hub = _hub()
    api, refused = hub.HfApi(), hub.errors.HfHubHTTPError
    # Of its HTTP library, which changes: requests once, httpx later.
    unreachable: Any = (OSError, refused.__bases__[0])
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise ConfigError(f"{name} exists and is public: make it private there, or leave it so")
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=files,
            delete_patterns=[each for each in NAMES if each not in files],
            commit_message="A model by dreamlib",
        )
    except refused as error:
        raise DreamlibError(f"the Hub refused {name} ({_reason(error)}): {LOGIN}") from error
    except unreachable as error:
        raise DreamlibError(f"the Hub could not be reached ({error}): try again later") from error
    return f"{api.endpoint}/{name}"


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ConfigError(
            'pushing needs huggingface_hub 0.25 or newer: pip install "dreamlib[export]"'
        ) from error
    return huggingface_hub


def _reason(error: Any) -> str:
    return str(error.server_message or error).splitlines()[0]
