"""Extract command lines from pages and files, and check them against the real commands."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from itertools import dropwhile, groupby, takewhile
from pathlib import Path

import click

from qconvert.cli import main, options
from qconvert.core import config_file

ROOT = Path(__file__).resolve().parents[2]

CONTAINER = ("docker", "podman")
# Options of `docker run` and `docker compose` without a value; all others have one.
FLAGS = ("--rm", "-it", "-i", "-t", "-d", "--read-only", "--init")


def shell_lines(text: str) -> list[str]:
    """Return the commands of a page's shell blocks; `\\` or an open quote continues one."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    commands: list[str] = []
    for line in joined.splitlines():
        if commands and _is_open(commands[-1]):
            commands[-1] += f"\n{line}"
        elif line.strip() and not line.startswith("#"):
            commands.append(line.strip().removeprefix("$ "))
    return commands


def qconvert_lines(lines: Sequence[str]) -> list[list[str]]:
    """Return the arguments of every `qconvert` among them, also of those in make and containers."""
    return [
        args for line in lines for words in _split_line(line) for args in _qconvert_arguments(words)
    ]


def require_real(args: Sequence[str]) -> None:
    """Fail unless the command, its options and all their values are valid."""
    if not args or args[0].startswith("-"):
        _context(main, "qconvert", args)
        return
    command = main.get_command(click.Context(main), args[0])
    assert command is not None, f"`{args[0]}` is no command"
    context = _context(command, args[0], args[1:])
    if context is not None and any("." in name for name in context.params):
        assigned = config_file.parse_assignments(context.params.get("assigned", ()))
        config_file.load(None, {**assigned, **options.read_settings(None, context.params)})


def _context(command: click.Command, name: str, args: Sequence[str]) -> click.Context | None:
    try:
        return command.make_context(name, list(args))
    except click.exceptions.Exit:  # --help and --version exit after printing
        return None


def _is_open(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return False


def _split_line(line: str) -> Iterator[list[str]]:
    """Split a line at `|`, `&&` and the like, and leave assignments and redirections out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for operator, words in groupby(lexer, lambda word: set(word) <= set(";|&")):
        if not operator:
            command = dropwhile(lambda word: re.match(r"\w+=", word), words)
            yield list(takewhile(lambda word: word not in {">", ">>"}, command))


def _qconvert_arguments(words: Sequence[str]) -> list[list[str]]:
    if not words:
        return []
    if words[0] == "make":
        return _make_commands(words)
    if words[0] in CONTAINER and "run" in words:
        return [_container_arguments(words[words.index("run") + 1 :])]
    if Path(words[0]).name == "qconvert":
        return [list(words[1:])]
    return []


def _container_arguments(words: Sequence[str]) -> list[str]:
    """Return the words after the image or the service."""
    rest = list(words)
    while rest[0].startswith("-"):
        del rest[: 1 if rest[0] in FLAGS or "=" in rest[0] else 2]
    return rest[1:]


def _make_commands(words: Sequence[str]) -> list[list[str]]:
    """Ask make itself which commands it would run."""
    arguments = [word for word in words[1:] if word != "-f" and not word.endswith("/Makefile")]
    command = ["make", "-n", "-f", str(ROOT / "Makefile"), *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, f"{shlex.join(words)}: {process.stderr}"
    return qconvert_lines(process.stdout.replace("\\\n", " ").splitlines())
