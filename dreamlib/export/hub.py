"""`dreamlib push`: an exported model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamlib.utils.context import say
from dreamlib.utils.errors import ConfigError, DreamlibError

LOGIN = "log in once with `hf auth login`, or set HF_TOKEN (on Colab and Kaggle: as a secret)"


def push(folder: Path, name: str, *, private: bool = False, dry_run: bool = False) -> str:
    """Upload what `export` wrote as owner/name; the address of the model's page.

    The token comes from huggingface_hub's usual places and is written nowhere.  `dry_run` only says
    what would go.  ConfigError without the package, a token or a card; DreamlibError when the Hub
    refuses, or cannot be reached.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ConfigError("pushing needs huggingface_hub: pip install huggingface_hub") from error
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if folder / "README.md" not in files:
        raise ConfigError(f"{folder} holds no exported model: run `dreamlib export` first")
    if "/" not in name:
        raise ConfigError(f"name the model owner/name, not {name}")
    for path in files:
        say(f"  {path.relative_to(folder)!s:45} {path.stat().st_size / 1e6:9.2f} MB")
    if dry_run:
        return f"{len(files)} files would go to {name}; nothing was sent"
    if hub.get_token() is None:
        raise ConfigError(f"the Hub needs a token with the right to write: {LOGIN}")
    api: Any = hub.HfApi()
    # Of its HTTP library, which changes: requests once, httpx later.
    unreachable: Any = (OSError, HfHubHTTPError.__bases__[0])
    try:
        api.create_repo(name, private=private, exist_ok=True)
        names = [path.relative_to(folder).as_posix() for path in files]
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=names,
            commit_message="A model by dreamlib",
        )
    except HFValidationError as error:
        raise ConfigError(f"{name} is no name for a model: {error}") from error
    except HfHubHTTPError as error:
        raise DreamlibError(f"the Hub refused {name} ({_reason(error)}): {LOGIN}") from error
    except unreachable as error:
        raise DreamlibError(f"the Hub could not be reached ({error}): try again later") from error
    return f"{api.endpoint}/{name}"


def _reason(error: Any) -> str:
    return str(error.server_message or error).splitlines()[0]
