"""A disk that is soon full: commands that run where a folder is a tmpfs of a few hundred kilobytes, in a mount namespace of their own.

Where the machine does not let us mount (no user namespaces, no `unshare`), tests limit the size of files instead (RLIMIT_FSIZE), which
fails with another number (EFBIG for ENOSPC) and at each file by itself.
"""

from __future__ import annotations

import functools
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


@functools.cache
def can_mount() -> bool:
    """Whether this machine lets us mount a tmpfs."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return subprocess.run(on_small_disk(Path(folder), 100, ["true"]), capture_output=True, timeout=60).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def on_small_disk(folder: Path, kilobytes: int, *commands: Sequence[str], keep: Path | None = None) -> list[str]:
    """Return the command that runs `commands`, one after the other, where `folder` is a new tmpfs of `kilobytes`, and fails as the first.

    The command "room" makes it a hundred times as large. keep: where what is in it is copied to in the end, which nobody else sees.
    """
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs {shlex.quote(str(folder))}"
    room = f"mount -o remount,size={100 * kilobytes}k {shlex.quote(str(folder))}"
    lines = [room if list(command) == ["room"] else shlex.join(command) for command in commands]
    kept = [f"cp -r {shlex.quote(str(folder))} {shlex.quote(str(keep))}"] if keep is not None else []
    return [*_UNSHARE, "sh", "-c", "\n".join(["set -e", mount, *lines, *kept])]
