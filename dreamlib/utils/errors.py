"""Our exceptions.  Each message is one clear sentence and names the remedy."""

from __future__ import annotations

import errno


class DreamlibError(Exception):
    """Something the user can put right; the message says how.  The CLI prints it and exits 2."""


class ConfigError(DreamlibError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(DreamlibError):
    """Images are missing, unreadable or not what their manifest says."""


class WeightsUnavailable(DreamlibError):
    """A pretrained network's file is not here, or is not the file it claims to be."""


class RunError(DreamlibError):
    """A run folder cannot be opened, written or continued."""


class CheckpointError(DreamlibError):
    """A file of saved state does not hold what its manifest promises."""


class NotThere(RunError):
    """A run does not hold yet what is asked for, and the message says what makes it."""


class Collapsed(RunError):
    """A GAN makes one image only, or learns no more."""


class NotFinite(RunError):
    """Loss, weights or optimizer state are no longer numbers."""


class MirrorError(RunError):
    """The mirror does not hold what is needed, or cannot be reached when it must be."""


class NoneIntact(CheckpointError):
    """There are checkpoints, and none of them is whole."""


class NotEnoughSamples(DreamlibError):
    """A statistic was asked of fewer images than it needs or than exist."""


class Interrupted(DreamlibError):
    """A long job was asked to stop between two units of work; what is done is kept."""


class OutOfTime(Interrupted):
    """The session's time budget is used up."""


ROOM, RIGHTS = "free some space there", "change its permissions, or use another place"
REMEDIES = {  # of calls that the system refuses
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), RIGHTS),
    errno.EIO: "check that disk or mount",
    errno.ENOTCONN: "mount it again",
    errno.EMFILE: "close some files, or raise the limit (ulimit -n)",
    errno.EEXIST: "move that away",
}


def what_failed(error: Exception) -> str:
    """An error of ours as it is; a call that the system refused as one sentence with its remedy."""
    if not isinstance(error, OSError):
        return str(error)
    remedy = REMEDIES.get(error.errno or 0, "put that right")
    return (
        f"{error.filename2 or error.filename or 'a file'} cannot be used "
        f"({error.strerror or error}): {remedy}, then give the same command again"
    )
