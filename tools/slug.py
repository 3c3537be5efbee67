"""Point every badge and link at a repository and a tag, and every setup cell at this very commit:
`make slug REPO=owner/name`.

    python3 tools/slug.py owner/name [tag]

What is there now is read from [project.urls] of pyproject.toml; the tag is v and the version there,
unless one is given.  A name can become somebody else's, and a tag be moved: the setup cells install
by the hash of the commit that they were stamped at, and the commit of the stamped notebooks is the
one to tag and push.  Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "docs/*.md",
    "notebooks/*.ipynb",
)
OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}"
NAME = r"[A-Za-z0-9._-]{1,100}"
TAG = r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9])?"
# What an address begins with, and what stands between the repository and a tag.
ADDRESSES = (
    (r"https://raw\.githubusercontent\.com/", "/"),
    (
        r"git@github\.com:|https://(?:github\.com|colab\.research\.google\.com/github)/",
        "@|/blob/|/tree/|/raw/|/releases/tag/",
    ),
)
# Not a longer name that begins with ours; a full stop or .git may follow.
ENDS = r"(?![A-Za-z0-9_-]|\.(?!git\b)[A-Za-z0-9_-])"


def current(text: str) -> tuple[str, str]:
    """pyproject.toml -> ('owner/name', 'v1.2.3')."""
    repository = re.search(r'^Repository = "https://github\.com/([^"]+)"$', text, re.MULTILINE)
    version = re.search(r'^version = "([^"]+)"$', text, re.MULTILINE)
    if not repository or not version:
        sys.exit("pyproject.toml needs a version, and Repository in [project.urls]")
    return repository[1], f"v{version[1]}"


def check(slug: str, tag: str) -> None:
    """End with a sentence when a repository or tag of this name cannot exist."""
    owner, _, name = slug.partition("/")
    if not re.fullmatch(OWNER, owner) or not re.fullmatch(NAME, name) or name in (".", ".."):
        sys.exit(f"{slug!r} is no repository: write REPO=owner/name, as in its GitHub address")
    if name.endswith(".git"):
        sys.exit(f"write REPO={slug[:-4]}: the name goes without .git")
    if not re.fullmatch(TAG, tag):
        sys.exit(f"{tag!r} is no tag: write one like TAG=v1.2.3, without slashes")


def rewrite(text: str, old: str, slug: str, tag: str) -> tuple[str, int]:
    """The text with every address of `old` pointing at `slug` and `tag` -> (text, changes)."""
    changed = 0

    def put(found: re.Match[str]) -> str:
        nonlocal changed
        new = found[1] + slug + (found[2] + tag if found[2] else "")
        changed += new != found[0]
        return new

    for begins, between in ADDRESSES:
        address = f"({begins}){re.escape(old)}{ENDS}(?:({between}){TAG})?"
        text = re.sub(address, put, text)
    return text, changed


# In a notebook's JSON; a path that somebody has put there stays.
SOURCE = re.compile(r'(?<=SOURCE = \\")(?:git\+https://github\.com/[^"\\]+)?(?=\\")')


def commit() -> str:
    """The full hash of the commit that holds the library as it is here; '' where there is none."""
    git = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run(
            [*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return ""
    if found.returncode or not (ROOT / ".git").exists():
        return ""
    state = [*git, "status", "--porcelain", "--", "dreamlib", "pyproject.toml"]
    if changed := subprocess.run(state, capture_output=True, text=True, check=True).stdout:
        sys.exit(f"commit this first, so that the notebooks can install it:\n{changed.rstrip()}")
    return found.stdout.strip()


def stamp(text: str, slug: str, sha: str) -> str:
    """A notebook whose setup cell installs this commit; none, where there is no hash."""
    return SOURCE.sub(f"git+https://github.com/{slug}@{sha}" if sha else "", text)


def main(words: list[str]) -> None:
    if not 1 <= len(words) <= 2:
        sys.exit("usage: make slug REPO=owner/name [TAG=v1.2.3]")
    old, tag = current((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    slug, tag = words[0], words[1] if len(words) > 1 else tag
    check(slug, tag)
    told, sha = 0, commit()
    for path in sorted(path for pattern in FILES for path in ROOT.glob(pattern)):
        before = path.read_bytes().decode("utf-8")
        after, changes = rewrite(before, old, slug, tag)
        if path.suffix == ".ipynb":
            after = stamp(after, slug, sha)
        if after != before:
            path.write_bytes(after.encode("utf-8"))
            told += changes
            sys.stdout.write(f"{path.relative_to(ROOT).as_posix()}: {changes}\n")
    sys.stdout.write(f"{told} addresses changed: {slug} at {tag}\n")
    what = f"install {sha}: commit them, tag that {tag}, push both" if sha else "are not stamped"
    sys.stdout.write(f"the notebooks {what}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
