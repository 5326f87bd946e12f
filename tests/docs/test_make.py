"""`make build`, `bench` and `report`, and the CI files that use them."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import write
from tests.docs.commands import ROOT, qconvert_lines, require_real
from tests.image_files import draw_images
from tests.models import mixed

EXAMPLES = ROOT / "examples" / "ci"


def make(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-f", ROOT / "Makefile", *args], capture_output=True, text=True, check=False
    )


def test_make_build_passes_only_the_given_options() -> None:
    arguments = ["build", "QCONVERT=qconvert", "MODEL=my net.onnx"]
    assert shlex.split(make("-n", *arguments).stdout) == ["qconvert", "build", "my net.onnx"]
    more = ["IMAGES=calib", "EVAL=val", "LABELS=l.csv", "RUN=runs/net"]
    process = make(
        "-n", *arguments, *more, "GATES=--max-drop 1 --min-speedup 2", "OPTIONS=--seconds 1"
    )
    assert shlex.split(process.stdout) == shlex.split(
        'qconvert build "my net.onnx" --images calib --eval val --labels l.csv -o runs/net'
        " --max-drop 1 --min-speedup 2 --seconds 1"
    )


@pytest.mark.parametrize(
    ("target", "missing"), [("build", "MODEL"), ("bench", "RUN"), ("report", "RUN")]
)
def test_missing_make_variable_is_reported_with_an_example(target: str, missing: str) -> None:
    process = make(target)
    assert process.returncode == 2
    assert f"{missing} is missing, as in: make {target} {missing}=" in process.stderr
    example = process.stderr.partition("as in: ")[2].removesuffix(".  Stop.\n")
    for args in qconvert_lines([example]):
        require_real(args)


def test_make_creates_an_environment_beside_the_makefile(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "Makefile").write_text((ROOT / "Makefile").read_text())
    process = subprocess.run(
        ["make", "-n", "-f", "checkout/Makefile", "bench", "RUN=r"],
        capture_output=True,
        text=True,
        check=True,
    )
    *_, created, installed, run = process.stdout.splitlines()
    assert created == "python3 -m venv checkout/.venv"
    assert installed.endswith('pip install -q -e "checkout/[cpu]"')
    assert run.startswith("checkout/.venv/bin/qconvert bench 'r'")


@pytest.mark.parametrize("name", ['a "b" c', "it's", "`id`", "a;b&c", "back\\slash", "*"])
def test_special_characters_in_names_reach_the_command(name: str) -> None:
    process = make("-n", "build", "QCONVERT=qconvert", f"MODEL={name}", f"IMAGES={name}")
    expected = ["qconvert", "build", name, "--images", name]
    assert shlex.split(process.stdout) == expected
    printed = ["sh", "-c", f"qconvert() {{ printf '%s\\n' \"$@\"; }}; {process.stdout}"]
    assert subprocess.check_output(printed, text=True).splitlines() == expected[1:]


def test_makefile_path_with_spaces_is_rejected(tmp_path: Path) -> None:
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    (checkout / "Makefile").write_text((ROOT / "Makefile").read_text())
    refused = subprocess.run(
        ["make", "-n", "-f", checkout / "Makefile", "bench", "RUN=r"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "the path of this Makefile has spaces" in refused.stderr


@pytest.mark.slow
def test_failed_gate_fails_make_and_stays_in_the_summary(tmp_path: Path) -> None:
    write(mixed(), tmp_path / "net.onnx")
    draw_images(tmp_path / "images", 40)
    here = f"QCONVERT={shlex.quote(sys.executable)} -m qconvert"
    arguments = ["MODEL=net.onnx", "IMAGES=images", "EVAL=images", "RUN=run"]
    quick = "OPTIONS=--backend cpu --precision fp32,int8 --seconds 0.02"
    built = make("build", here, *arguments, quick, "GATES=--min-agreement 50 --max-size 0.001")
    assert "Error 1" in built.stderr
    summary = make("report", here, "RUN=run", "FORMAT=md").stdout
    assert summary.startswith("# net")
    assert re.search(r"cpu-int8.*FAIL", summary)


def scripts(value: Any) -> Iterator[str]:
    """Yield every command line of a CI file."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in {"run", "script", "before_script", "after_script"}:
                yield from [inner] if isinstance(inner, str) else inner
            else:
                yield from scripts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from scripts(inner)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yml")), ids=lambda path: path.name)
def test_commands_of_the_ci_files_are_valid(file: Path) -> None:
    lines = list(scripts(yaml.safe_load(file.read_text())))
    commands = qconvert_lines(lines)
    assert [args[0] for args in commands] == ["build", "report"]
    for args in commands:
        require_real(args)


def test_github_workflow_caches_results_and_uploads_the_run() -> None:
    text = (EXAMPLES / "github.yml").read_text()
    (job,) = yaml.safe_load(text)["jobs"].values()
    steps = {step["uses"].split("@")[0]: step["with"] for step in job["steps"] if "uses" in step}
    assert job["env"]["QCONVERT_CACHE_DIR"].endswith("/" + steps["actions/cache"]["path"])
    assert f"RUN={steps['actions/upload-artifact']['path']} " in text
    assert '>> "$GITHUB_STEP_SUMMARY"' in text


def test_gitlab_job_keeps_the_cache_and_the_runs() -> None:
    job = yaml.safe_load((EXAMPLES / "gitlab.yml").read_text())["engines"]
    paths = [f"$CI_PROJECT_DIR/{place.rstrip('/')}" for place in job["cache"]["paths"]]
    assert job["variables"]["QCONVERT_CACHE_DIR"] in paths
    assert re.search(r"RUN=(\w+)/", job["script"][0])[1] + "/" in job["artifacts"]["paths"]  # type: ignore[index]
