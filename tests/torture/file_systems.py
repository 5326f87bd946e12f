"""Places that cannot take what a build writes, and what it has to say about them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.environment import Finished

# Words before a command, as `around` of a build takes them. In each, $1 is a folder for a disk.
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
    """Return what gives a command a disk with so many KiB of room; `kept` gets what is on it."""
    folder.mkdir()
    kept.mkdir()
    return _namespace(FULL, folder, room, fill or kept, kept)


def with_read_only(folder: Path) -> list[str]:
    """Return what lets a command read a folder and not write it, as on a disk mounted so."""
    return _namespace(READ_ONLY, folder)


def without_privileges(folder: Path) -> list[str]:
    """Take away the rights to write folders; return what makes them count for root too."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o555)
    if os.geteuid() != 0:
        return []
    around = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
    return _usable(around)


def with_file_size_limit(largest: int) -> list[str]:
    """Return what keeps the files of a command below so many bytes."""
    return [sys.executable, "-c", LIMITED, str(largest)]


def require_clear_error(done: Finished, *places: Path) -> None:
    """Require one sentence that names one of the places, a hint, and no traceback."""
    end = done.err[-600:]
    assert "Traceback" not in done.err, end
    assert done.code in (2, 3), end
    assert done.err.count("error: ") == 1, end
    assert "\n\nhint: " in done.err
    assert any(str(folder) in done.said for folder in places), done.said


def _namespace(script: str, *args: object) -> list[str]:
    around = _usable(["unshare", "--user", "--map-root-user", "--mount"])
    return [*around, "sh", "-c", script, "sh", *map(str, args)]


def _usable(around: list[str]) -> list[str]:
    """Return a command that runs others; skip the test where it does not work."""
    try:
        done = subprocess.run([*around, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"there is no `{around[0]}` here")
    if done.returncode:
        pytest.skip(f"`{around[0]}` does not work here: {done.stderr.strip()}")
    return around
