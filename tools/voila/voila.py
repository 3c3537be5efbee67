"""Voilà's settings for `make playground`: asked by its own name only, and a few pages at once.

A page of another site that has its name point at this machine is refused (its Host is not ours),
and every page that is opened is a kernel with a network in memory, so their number is bounded.
"""

from typing import Any

from tornado.web import HTTPError

KERNELS = 8
MINUTES = 60  # that a page may lie idle before its kernel is ended


def bounded(handler: Any, notebook: Any, cwd: str) -> None:
    """Refuse one page more than KERNELS, before its kernel begins."""
    if len(handler.kernel_manager.list_kernel_ids()) >= KERNELS:
        raise HTTPError(503, f"{KERNELS} pages are open already: close one, and load this again")


c = get_config()  # noqa: F821  given by Voilà
c.Voila.tornado_settings = {"allow_remote_access": False, "local_hostnames": ["localhost"]}
c.VoilaConfiguration.prelaunch_hook = bounded
c.VoilaKernelManager.cull_idle_timeout = 60 * MINUTES
c.VoilaKernelManager.cull_interval = 60
