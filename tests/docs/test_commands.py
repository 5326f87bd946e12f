"""The checker of commands on pages finds them, and finds errors in them."""

import click
import pytest

from qconvert.core.errors import UsageError
from tests.docs.commands import qconvert_lines, require_real, shell_lines

PAGE = """
```sh
# a comment
$ qconvert build m.onnx \\
    --images a   # why
cd there && QCONVERT_CACHE_DIR=x qconvert cache | head > out
docker run --rm --gpus all -v "$PWD:/data" qconvert:gpu doctor
docker compose -f compose.yaml run --rm cpu bench runs/m
make -f there/Makefile build MODEL=m.onnx GATES="--max-drop 1"
make help
python -c 'print("two
qconvert lines")' && qconvert doctor
pip install qconvert
```

```text
qconvert no-such-command
```
"""


def test_commands_inside_pipes_containers_and_make_are_found() -> None:
    assert qconvert_lines(shell_lines(PAGE)) == [
        ["build", "m.onnx", "--images", "a"],
        ["cache"],
        ["doctor"],
        ["bench", "runs/m"],
        ["build", "m.onnx", "--max-drop", "1"],
        ["doctor"],
    ]


@pytest.mark.parametrize(
    "line",
    ["--version", "build --help", "build m.onnx --method percentile:99.9 --backend cpu,tensorrt"],
)
def test_valid_command_passes(line: str) -> None:
    require_real(line.split())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("bild m.onnx", AssertionError),
        ("build m.onnx --imagse x", click.NoSuchOption),
        ("build m.onnx --rest fp8", click.BadParameter),
        ("build m.onnx --method guess", UsageError),
        ("build m.onnx --backend gpu", UsageError),
        ("build m.onnx --set bench.secs=1", UsageError),
        ("report", click.MissingParameter),
    ],
)
def test_invalid_command_is_rejected(line: str, why: type[Exception]) -> None:
    with pytest.raises(why):
        require_real(line.split())
