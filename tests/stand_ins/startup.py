"""Runs in a kernel before the first cell: /content and /kaggle/input lie elsewhere.

The library reads these places from two constants and from nothing else.  They are replaced once
the notebook's first cell, which makes dreamlib importable, is done.
"""

import os
from pathlib import Path

_shell = get_ipython()  # noqa: F821


def _lay_out(*_):
    from dreamlib.runs.lock import Owner
    from dreamlib.utils import platform as host

    host.DRIVE = Path(os.environ["STAND_IN_MYDRIVE"])
    host.INPUTS = Path(os.environ["STAND_IN_INPUTS"])
    Owner.__init__.__kwdefaults__["watch"] = 1.0  # seconds, of a machine that is lost for good
    _shell.events.unregister("post_run_cell", _lay_out)


_shell.events.register("post_run_cell", _lay_out)
