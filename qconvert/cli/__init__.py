"""The command table: every command's name and summary, known without importing any of them."""

import sys
from importlib import import_module

import click

from qconvert import __version__
from qconvert.cli import error_boundary
from qconvert.cli.error_boundary import run_guarded

COMMANDS = {
    "demo": "See the whole job done, on a network that comes with qconvert.",
    "build": "Make engines of a model, time and score them, in one report.",
    "bench": "Time engines side by side.",
    "evaluate": "Compare the answers of engines with FP32, and with labels.",
    "report": "Show a finished run again, as text, HTML, Markdown or JSON.",
    "package": "Pack an engine for ONNX Runtime or Triton.",
    "export": "Turn a source into one clean ONNX file, checked against it.",
    "inspect": "Show a model's inputs, operators and sizes.",
    "calibrate": "Measure ranges of a model's tensors over images.",
    "quantize": "Rewrite a model to INT8, FP16 or BF16 for a backend.",
    "search": "Find what must leave INT8 for the answers to keep a budget.",
    "compare": "Find the layers where two models differ.",
    "init": "Write a commented qconvert.toml for a model.",
    "doctor": "Show which backends work here, and why not.",
    "cache": "List or clear stored results.",
}

EXIT_CODES = """\b
Exit codes:
  0  done; every gate passed
  1  done; a gate failed
  2  the command or the configuration is wrong
  3  the work failed
  4  a backend or package is not available here
  70 a bug in qconvert    130 interrupted    143 terminated"""


class Commands(click.Group):
    """Imports a command only when it runs, so that `--help` costs nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        found = import_module(f"qconvert.cli.{cmd_name}").command
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="qconvert", message="%(prog)s %(version)s")
def main() -> None:
    """From a trained image model to the fastest engine that still gives the right answers."""


def run() -> None:
    """Run the command line and exit with its code."""
    error_boundary.open_standard_streams()
    code = run_guarded(main, sys.argv[1:])
    error_boundary.flush_stdout()
    sys.exit(code)
