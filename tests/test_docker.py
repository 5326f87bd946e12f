"""The image's files hold together, as far as they can be read: `docker/check` makes and uses it."""

import itertools
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.commands_in_docs import ROOT

DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines) if name
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of every stage, its FROM first; what is before the first, by ''."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for name, rest in instructions():
        if name == "FROM":
            found[rest.split(" AS ")[1]] = []
        found[list(found)[-1]].append((name, rest))
    return found


def arguments() -> dict[str, str]:
    """Return every build argument with its default."""
    return dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")


def ancestry(target: str) -> list[tuple[str, str]]:
    """Return all that the image of a target is made by, oldest first."""
    base = stages()[target][0][1].split(" AS ")[0]
    return (ancestry(base) if base in stages() else []) + stages()[target]


def locked(name: str) -> list[Requirement]:
    """Return the releases of a lock, each with its marker."""
    text = (DOCKER / "locks" / f"{name}.txt").read_text()
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [Requirement(line.partition(" --hash")[0]) for line in lines]


def release(name: str, package: str, python: str) -> str:
    """Return the one release of a package that a lock holds for a Python on Linux."""
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    found = [
        str(each.specifier).removeprefix("==")
        for each in locked(name)
        if each.name == package and (each.marker is None or each.marker.evaluate(here))
    ]
    assert len(found) == 1, f"docker/locks/{name}.txt has {found} for {package}: run `make locks`"
    return found[0]


def wanted(*extras: str) -> list[Requirement]:
    """Return what pyproject.toml asks for, with extras."""
    asked = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][each] for each in extras)]
    return [Requirement(line) for line in itertools.chain(*asked)]


def test_every_stage_stands_on_one_before_it_or_on_an_argument() -> None:
    known: list[str] = []
    for name, (first, *_) in list(stages().items())[1:]:
        base = first[1].split(" AS ")[0]
        argument = re.fullmatch(r"\$\{(\w+)\}", base)
        assert base in known if argument is None else argument[1] in arguments()
        known.append(name)


def test_every_file_copied_in_exists_and_is_let_through() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines
    assert all((ROOT / place).exists() for place in let_through)
    copied = [rest.split() for name, rest in instructions() if name == "COPY"]
    for source in [
        word for words in copied if not words[0].startswith("--") for word in words[:-1]
    ]:
        assert (ROOT / source).exists(), source
        assert any(Path(source).is_relative_to(place) for place in let_through), source
    for words in copied:
        if words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages()


def test_every_argument_used_is_declared_where_it_is_used() -> None:
    for name, lines in list(stages().items())[1:]:
        declared = {rest.split("=")[0] for kind, rest in lines if kind == "ARG"}
        used = {each for kind, rest in lines[1:] for each in re.findall(r"\$\{(\w+)\}", rest)}
        assert used <= declared, name


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_qconvert_as_nobody_in_particular(target: str) -> None:
    lines = ancestry(target)
    last = dict(lines)
    assert json.loads(last["ENTRYPOINT"]) == ["qconvert"]
    assert json.loads(last["CMD"]) == ["--help"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    assert last["WORKDIR"] == "/data"
    assert json.loads(last["VOLUME"]) == ["/cache"]
    assert any("QCONVERT_CACHE_DIR=/cache" in rest for name, rest in lines if name == "ENV")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_nothing_is_fetched_or_compiled_in_the_image_itself(target: str) -> None:
    runs = " ".join(rest for name, rest in ancestry(target) if name == "RUN")
    assert not re.search(r"\b(pip|apt-get|gcc|curl)\b", runs)


def test_the_image_for_cpus_is_what_one_gets_without_a_target() -> None:
    assert list(stages())[-1] == "cpu"


def test_whatever_fetches_can_be_told_another_index() -> None:
    for name, rest in instructions():
        if name == "RUN" and re.search(r"pip (--python \S+ )?(install|wheel)", rest):
            offline = "--no-index" in rest or "/source" in rest
            assert offline or ("id=pip.conf" in rest and "id=ca" in rest), rest


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("lock", "extra"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_a_lock_holds_all_that_the_package_asks_for(lock: str, extra: str, python: str) -> None:
    for asked in wanted(extra):
        assert asked.specifier.contains(release(lock, asked.name, python)), asked


def test_what_is_not_in_the_locks_is_in_range_too() -> None:
    (pycuda,) = PROJECT["optional-dependencies"]["pycuda"]
    assert Requirement(pycuda).specifier.contains(release("pycuda", "pycuda", "3.13"))
    (tensorrt,) = [each for each in wanted("tensorrt") if each.name.startswith("tensorrt")]
    assert tensorrt.specifier.contains(arguments()["TENSORRT"])
    assert f"{tensorrt.name}==${{TENSORRT}}" in (DOCKER / "Dockerfile").read_text()
    (backend,) = map(
        Requirement,
        tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"],
    )
    assert backend.specifier.contains(release("tools", backend.name, "3.13"))


def test_tensorrt_and_cuda_ask_for_the_same_runtime() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras["cuda"]) < set(extras["tensorrt"])


@pytest.mark.parametrize(
    "lock", sorted((DOCKER / "locks").glob("*.txt")), ids=lambda path: path.stem
)
def test_every_release_of_a_lock_has_hashes_and_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert all(
        " --hash=sha256:" in each
        for each in re.sub(r"\\\n\s*", " ", text).splitlines()
        if "==" in each
    )
    assert "://" not in text


def compose() -> Any:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.mark.parametrize("service", ["cpu", "gpu"])
def test_a_service_builds_a_target_and_keeps_its_cache(service: str) -> None:
    chosen = compose()["services"][service]
    assert chosen["build"]["target"] == service
    assert (DOCKER / chosen["build"]["context"] / chosen["build"]["dockerfile"]).is_file()
    assert chosen["image"] == f"qconvert:{service}"
    places = [volume.rpartition(":")[2] for volume in chosen["volumes"]]
    assert places == ["/data", "/cache"]
    assert "cache" in compose()["volumes"]


def test_only_the_service_for_gpus_asks_for_one() -> None:
    assert "deploy" not in compose()["services"]["cpu"]
    (device,) = compose()["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize(("target", "stage"), [("image", "cpu"), ("image-gpu", "gpu")])
def test_make_builds_the_targets_with_the_tool_it_is_told(target: str, stage: str) -> None:
    done = subprocess.run(
        ["make", "-n", "-f", ROOT / "Makefile", target, "CONTAINER=podman", "IMAGE=here"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == (
        f"podman build -f docker/Dockerfile --target {stage} -t here:{stage} .".split()
    )


@pytest.mark.parametrize("script", ["check", "lock", "slim"])
def test_the_scripts_parse_and_can_be_started(script: str) -> None:
    place = DOCKER / script
    assert os.access(place, os.X_OK)
    shell = place.read_text().splitlines()[0].rpartition("/")[2].split()[-1]
    subprocess.run([shell, "-n", place], check=True)
