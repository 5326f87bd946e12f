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

from tests.commands_in_docs import ROOT, qconvert_lines, require_real
from tests.conftest import write
from tests.models import mixed
from tests.pictures import draw_folder

EXAMPLES = ROOT / "examples" / "ci"


def make(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-f", ROOT / "Makefile", *args], capture_output=True, text=True, check=False
    )


def test_build_says_what_was_asked_and_no_more() -> None:
    asked = ["build", "QCONVERT=qconvert", "MODEL=my net.onnx"]
    assert shlex.split(make("-n", *asked).stdout) == ["qconvert", "build", "my net.onnx"]
    more = ["IMAGES=calib", "EVAL=val", "LABELS=l.csv", "RUN=runs/net"]
    done = make("-n", *asked, *more, "GATES=--max-drop 1 --min-speedup 2", "OPTIONS=--seconds 1")
    assert shlex.split(done.stdout) == shlex.split(
        'qconvert build "my net.onnx" --images calib --eval val --labels l.csv -o runs/net'
        " --max-drop 1 --min-speedup 2 --seconds 1"
    )


@pytest.mark.parametrize(
    ("target", "missing"), [("build", "MODEL"), ("bench", "RUN"), ("report", "RUN")]
)
def test_what_is_missing_is_told_with_an_example(target: str, missing: str) -> None:
    done = make(target)
    assert done.returncode == 2
    assert f"{missing} is missing, as in: make {target} {missing}=" in done.stderr
    example = done.stderr.partition("as in: ")[2].removesuffix(".  Stop.\n")
    for args in qconvert_lines([example]):
        require_real(args)


def test_without_one_on_path_the_command_is_made_beside_the_makefile(tmp_path: Path) -> None:
    there = tmp_path / "checkout"
    there.mkdir()
    (there / "Makefile").write_text((ROOT / "Makefile").read_text())
    done = subprocess.run(
        ["make", "-n", "-f", "checkout/Makefile", "bench", "RUN=r"],
        capture_output=True,
        text=True,
        check=True,
    )
    *_, created, installed, run = done.stdout.splitlines()
    assert created == "python3 -m venv checkout/.venv"
    assert installed.endswith('pip install -q -e "checkout/[cpu]"')
    assert run.startswith("checkout/.venv/bin/qconvert bench 'r'")


@pytest.mark.parametrize("name", ['a "b" c', "it's", "`id`", "a;b&c", "back\\slash", "*"])
def test_names_reach_the_command_as_they_are(name: str) -> None:
    done = make("-n", "build", "QCONVERT=qconvert", f"MODEL={name}", f"IMAGES={name}")
    wanted = ["qconvert", "build", name, "--images", name]
    assert shlex.split(done.stdout) == wanted
    printed = ["sh", "-c", f"qconvert() {{ printf '%s\\n' \"$@\"; }}; {done.stdout}"]
    assert subprocess.check_output(printed, text=True).splitlines() == wanted[1:]


def test_a_makefile_whose_path_has_spaces_makes_nothing_elsewhere(tmp_path: Path) -> None:
    there = tmp_path / "my checkout"
    there.mkdir()
    (there / "Makefile").write_text((ROOT / "Makefile").read_text())
    refused = subprocess.run(
        ["make", "-n", "-f", there / "Makefile", "bench", "RUN=r"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "the path of this Makefile has spaces" in refused.stderr


def test_a_failed_gate_fails_make_and_the_summary_still_tells(tmp_path: Path) -> None:
    write(mixed(), tmp_path / "net.onnx")
    draw_folder(tmp_path / "images", 40)
    here = f"QCONVERT={shlex.quote(sys.executable)} -m qconvert"
    asked = ["MODEL=net.onnx", "IMAGES=images", "EVAL=images", "RUN=run"]
    quick = "OPTIONS=--backend cpu --precision fp32,int8 --seconds 0.02"
    built = make("build", here, *asked, quick, "GATES=--min-agreement 50 --max-size 0.001")
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
def test_every_command_of_the_ci_files_is_real(file: Path) -> None:
    lines = list(scripts(yaml.safe_load(file.read_text())))
    found = qconvert_lines(lines)
    assert [args[0] for args in found] == ["build", "report"]
    for args in found:
        require_real(args)


def test_github_keeps_the_store_and_uploads_the_run_that_it_builds() -> None:
    text = (EXAMPLES / "github.yml").read_text()
    (job,) = yaml.safe_load(text)["jobs"].values()
    steps = {step["uses"].split("@")[0]: step["with"] for step in job["steps"] if "uses" in step}
    assert job["env"]["QCONVERT_CACHE_DIR"].endswith("/" + steps["actions/cache"]["path"])
    assert f"RUN={steps['actions/upload-artifact']['path']} " in text
    assert '>> "$GITHUB_STEP_SUMMARY"' in text


def test_gitlab_keeps_the_store_and_the_runs() -> None:
    job = yaml.safe_load((EXAMPLES / "gitlab.yml").read_text())["engines"]
    kept = [f"$CI_PROJECT_DIR/{place.rstrip('/')}" for place in job["cache"]["paths"]]
    assert job["variables"]["QCONVERT_CACHE_DIR"] in kept
    assert re.search(r"RUN=(\w+)/", job["script"][0])[1] + "/" in job["artifacts"]["paths"]  # type: ignore[index]
