"""The command table: files and summaries of all commands, in the order a newcomer needs them."""

import sys
from importlib import import_module

import click

from qconvert import __version__
from qconvert.cli.error_boundary import flush_stdout, open_standard_streams, run_guarded

COMMANDS = {
    "demo": ("build", "See a whole build on a network that comes with qconvert."),
    "build": ("build", "Build engines of a model, time and evaluate them, in one report."),
    "tune": ("build", "Train the INT8 engines of a run to give the outputs of FP32."),
    "bench": ("engines", "Time engines side by side."),
    "evaluate": ("engines", "Compare the outputs of engines with FP32, and with labels."),
    "report": ("engines", "Show the report of a run as text, HTML, Markdown or JSON."),
    "package": ("engines", "Package an engine for ONNX Runtime or Triton."),
    "export": ("models", "Convert a model to one clean ONNX file and check its outputs."),
    "inspect": ("models", "Show a model's inputs, operators and sizes."),
    "calibrate": ("quantize", "Measure ranges of a model's tensors on images."),
    "quantize": ("quantize", "Convert a model to INT8, FP16 or BF16 for a backend."),
    "search": ("quantize", "Find what to keep in float to stay within an accuracy budget."),
    "compare": ("engines", "Find the layers where two models differ."),
    "init": ("models", "Write a commented qconvert.toml for a model."),
    "doctor": ("machine", "Show which backends work here, and why not."),
    "cache": ("machine", "List or clear cached results."),
}

EXIT_CODES = """\b
Exit codes:
  0  done; every gate passed
  1  done; a gate failed
  2  the command or the configuration is wrong
  3  the work failed
  4  a backend or package is not available here
  70 a bug in qconvert    130 interrupted    143 terminated"""


class _Commands(click.Group):
    """Imports a command only to run it, which keeps `--help` fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"qconvert.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="qconvert", message="%(prog)s %(version)s")
def main() -> None:
    """From a trained image model to the fastest engine that keeps its accuracy."""


def run() -> None:
    """Run the command line and exit with its code."""
    open_standard_streams()
    code = run_guarded(main, sys.argv[1:])
    flush_stdout()
    sys.exit(code)
