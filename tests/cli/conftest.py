"""`dreamlib`, as a user types it, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from dreamlib.cli.main import main


class Program:
    """program("train", "x") -> exit code, stdout, stderr; some of the words are always there."""

    def __init__(self, patch, capture, *words):
        self.patch, self.capture, self.words = patch, capture, words

    def __call__(self, *words) -> tuple[int, str, str]:
        self.patch.setattr(sys, "argv", ["dreamlib", *self.words, *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            main()
        out = self.capture.readouterr()
        return exit.value.code or 0, out.out, out.err

    def done(self, *words) -> str:
        """What a command that succeeds prints."""
        code, out, err = self(*words)
        assert code == 0, err
        return out

    def refused(self, *words) -> str:
        """The one sentence of a command that is refused."""
        code, _, err = self(*words)
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith("error: ")
        return err


@pytest.fixture
def program(monkeypatch, capsys) -> Callable[..., Program]:
    return lambda *words: Program(monkeypatch, capsys, *words)
