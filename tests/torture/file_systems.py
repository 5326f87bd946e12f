"""Full, read-only and limited file systems, and the errors that a build must report on them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.environment import Finished

# Scripts that run a command on a special disk, for `around` of a build; $1 is its mount point.
FULL = """
folder=$1 room=$2 fill=$3 keep=$4; shift 4
mount -t tmpfs -o size=64m none "$place" || exit 99
cp -a "$fill/." "$place"
used=$(df -kP "$place" | awk 'NR == 2 { print $3 }')
mount -o "remount,size=$((used + room))k" "$place" || exit 99
"$@"; code=$?
cp -a "$folder/." "$keep" && exit $code
"""
READ_ONLY = """
folder=$1; shift
mount --bind "$place" "$place" && mount -o remount,bind,ro "$place" || exit 99
exec "$@"
"""
LIMITED = (
    "import os, resource, sys; size = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); os.execv(sys.argv[2], sys.argv[2:])"
)


def with_full_disk(folder: Path, room: int, kept: Path, fill: Path | None = None) -> list[str]:
    """Return the words that run a command on a disk with `room` KiB left, copied to `kept`."""
    folder.mkdir()
    kept.mkdir()
    return _namespace(FULL, folder, room, fill or kept, kept)


def with_read_only(folder: Path) -> list[str]:
    """Return the words that run a command with a folder mounted read-only."""
    return _namespace(READ_ONLY, folder)


def without_privileges(folder: Path) -> list[str]:
    """Remove the write permission of folders; return the words that enforce it for root too."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o555)
    if os.geteuid() != 0:
        return []
    around = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
    return _usable(around)


def with_file_size_limit(largest: int) -> list[str]:
    """Return the words that limit the files of a command to `largest` bytes."""
    return [sys.executable, "-c", LIMITED, str(largest)]


def require_clear_error(outcome: Finished, *places: Path) -> None:
    """Require one error that names one of the places, a hint, and no traceback."""
    end = outcome.err[-600:]
    assert "Traceback" not in outcome.err, end
    assert outcome.code in (2, 3), end
    assert outcome.err.count("error: ") == 1, end
    assert "\n\nhint: " in outcome.err
    assert any(str(folder) in outcome.error_message for folder in places), outcome.error_message


def _namespace(script: str, *args: object) -> list[str]:
    around = _usable(["unshare", "--user", "--map-root-user", "--mount"])
    return [*around, "sh", "-c", script, "sh", *map(str, args)]


def _usable(around: list[str]) -> list[str]:
    """Return a command that runs others; skip the test where it does not work."""
    try:
        process = subprocess.run([*around, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"there is no `{around[0]}` here")
    if process.returncode:
        pytest.skip(f"`{around[0]}` does not work here: {process.stderr.strip()}")
    return around
