"""The help is complete, fits 80 columns, and imports nothing heavy."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from qconvert.cli import COMMANDS, EXIT_CODES
from tests.conftest import Outcome

HEAVY = "numpy onnx onnx_ir onnxruntime torch matplotlib PIL pydantic rich"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_no_heavy_package(command: str | None) -> None:
    args = [command, "--help"] if command else ["--help"]
    script = (
        "import sys\nfrom qconvert.cli import main\n"
        f"main.main(args={args!r}, standalone_mode=False)\n"
        f"print(sorted(set({HEAVY.split()!r}) & set(sys.modules)), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert process.stderr.strip() == "[]"


@pytest.mark.parametrize("command", list(COMMANDS))
def test_command_help_fits_80_columns_and_ends_with_examples(
    command: str, qconvert: Callable[..., Outcome]
) -> None:
    outcome = qconvert(command, "--help")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    examples = outcome.out.partition("Examples:\n")[2].strip().splitlines()
    assert len(examples) in (2, 3)
    assert all(line.strip().startswith(f"qconvert {command}") for line in examples)


def test_help_lists_every_command_and_the_exit_codes(qconvert: Callable[..., Outcome]) -> None:
    outcome = qconvert("--help")
    for name, (_, summary) in COMMANDS.items():
        assert name in outcome.out
        assert summary in outcome.out
    assert EXIT_CODES.removeprefix("\b\n").splitlines()[1].strip() in outcome.out


def test_version_option_prints_the_package_version(qconvert: Callable[..., Outcome]) -> None:
    from importlib.metadata import version

    assert qconvert("--version").out == f"qconvert {version('qconvert')}\n"
