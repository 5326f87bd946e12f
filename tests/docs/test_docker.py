"""The Dockerfile, compose file and locks agree; `docker/check` builds the image and runs it."""

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

from tests.docs.commands import ROOT

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
    """Return the instructions of every stage, its FROM first; those before any are under ''."""
    stages_by_name: dict[str, list[tuple[str, str]]] = {"": []}
    for name, rest in instructions():
        if name == "FROM":
            stages_by_name[rest.split(" AS ")[1]] = []
        stages_by_name[list(stages_by_name)[-1]].append((name, rest))
    return stages_by_name


def arguments() -> dict[str, str]:
    """Return every build argument with its default."""
    return dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")


def ancestry(target: str) -> list[tuple[str, str]]:
    """Return all instructions that build a target, oldest first."""
    base = stages()[target][0][1].split(" AS ")[0]
    return (ancestry(base) if base in stages() else []) + stages()[target]


def locked(name: str) -> list[Requirement]:
    """Return the requirements of a lock with their markers."""
    text = (DOCKER / "locks" / f"{name}.txt").read_text()
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [Requirement(line.partition(" --hash")[0]) for line in lines]


def release(name: str, package: str, python: str) -> str:
    """Return the one release of a package that a lock holds for a Python on Linux."""
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    releases = [
        str(requirement.specifier).removeprefix("==")
        for requirement in locked(name)
        if requirement.name == package
        and (requirement.marker is None or requirement.marker.evaluate(here))
    ]
    assert len(releases) == 1, f"docker/locks/{name}.txt has {releases} for {package}"
    return releases[0]


def requirements(*extras: str) -> list[Requirement]:
    """Return the requirements of pyproject.toml, with extras."""
    lines = [
        PROJECT["dependencies"],
        *(PROJECT["optional-dependencies"][extra] for extra in extras),
    ]
    return [Requirement(line) for line in itertools.chain(*lines)]


def test_build_stages_start_from_earlier_stage_or_argument() -> None:
    earlier: list[str] = []
    for name, (first, *_) in list(stages().items())[1:]:
        base = first[1].split(" AS ")[0]
        argument = re.fullmatch(r"\$\{(\w+)\}", base)
        assert base in earlier if argument is None else argument[1] in arguments()
        earlier.append(name)


def test_copied_files_exist_and_pass_dockerignore() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    included = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines
    assert all((ROOT / place).exists() for place in included)
    copied = [rest.split() for name, rest in instructions() if name == "COPY"]
    for source in [
        word for words in copied if not words[0].startswith("--") for word in words[:-1]
    ]:
        assert (ROOT / source).exists(), source
        assert any(Path(source).is_relative_to(place) for place in included), source
    for words in copied:
        if words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages()


def test_build_arguments_are_declared_in_their_stage() -> None:
    for name, lines in list(stages().items())[1:]:
        declared = {rest.split("=")[0] for kind, rest in lines if kind == "ARG"}
        used = {name for kind, rest in lines[1:] for name in re.findall(r"\$\{(\w+)\}", rest)}
        assert used <= declared, name


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_container_image_runs_qconvert_as_unprivileged_user(target: str) -> None:
    lines = ancestry(target)
    last = dict(lines)
    assert json.loads(last["ENTRYPOINT"]) == ["qconvert"]
    assert json.loads(last["CMD"]) == ["--help"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    assert last["WORKDIR"] == "/data"
    assert json.loads(last["VOLUME"]) == ["/cache"]
    assert any("QCONVERT_CACHE_DIR=/cache" in rest for name, rest in lines if name == "ENV")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_final_container_image_neither_downloads_nor_compiles(target: str) -> None:
    runs = " ".join(rest for name, rest in ancestry(target) if name == "RUN")
    assert not re.search(r"\b(pip|apt-get|gcc|curl)\b", runs)


def test_default_target_is_the_cpu_image() -> None:
    assert list(stages())[-1] == "cpu"


def test_pip_steps_accept_another_package_index() -> None:
    for name, rest in instructions():
        if name == "RUN" and re.search(r"pip (--python \S+ )?(install|wheel)", rest):
            offline = "--no-index" in rest or "/source" in rest
            assert offline or ("id=pip.conf" in rest and "id=ca" in rest), rest


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("lock", "extra"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_lock_satisfies_the_requirements_of_the_package(lock: str, extra: str, python: str) -> None:
    for requirement in requirements(extra):
        assert requirement.specifier.contains(release(lock, requirement.name, python)), requirement


def test_pinned_releases_outside_the_locks_satisfy_the_requirements() -> None:
    (tensorrt,) = [
        requirement
        for requirement in requirements("tensorrt")
        if requirement.name.startswith("tensorrt")
    ]
    assert tensorrt.specifier.contains(arguments()["TENSORRT"])
    assert f"{tensorrt.name}==${{TENSORRT}}" in (DOCKER / "Dockerfile").read_text()
    (backend,) = map(
        Requirement,
        tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"],
    )
    assert backend.specifier.contains(release("tools", backend.name, "3.13"))


def test_tensorrt_extra_includes_the_cuda_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras["cuda"]) < set(extras["tensorrt"])


@pytest.mark.parametrize(
    "lock", sorted((DOCKER / "locks").glob("*.txt")), ids=lambda path: path.stem
)
def test_locked_releases_have_hashes_and_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert all(
        " --hash=sha256:" in line
        for line in re.sub(r"\\\n\s*", " ", text).splitlines()
        if "==" in line
    )
    assert "://" not in text


def compose() -> Any:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.mark.parametrize("service", ["cpu", "gpu"])
def test_compose_service_builds_its_target_and_keeps_the_cache(service: str) -> None:
    chosen = compose()["services"][service]
    assert chosen["build"]["target"] == service
    assert (DOCKER / chosen["build"]["context"] / chosen["build"]["dockerfile"]).is_file()
    assert chosen["image"] == f"qconvert:{service}"
    places = [volume.rpartition(":")[2] for volume in chosen["volumes"]]
    assert places == ["/data", "/cache"]
    assert "cache" in compose()["volumes"]


def test_gpu_is_reserved_by_gpu_service_alone() -> None:
    assert "deploy" not in compose()["services"]["cpu"]
    (device,) = compose()["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize(("target", "stage"), [("image", "cpu"), ("image-gpu", "gpu")])
def test_make_image_uses_the_chosen_container_tool(target: str, stage: str) -> None:
    process = subprocess.run(
        ["make", "-n", "-f", ROOT / "Makefile", target, "CONTAINER=podman", "IMAGE=here"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == (
        f"podman build -f docker/Dockerfile --target {stage} -t here:{stage} .".split()
    )


@pytest.mark.parametrize("script", ["check", "lock", "slim"])
def test_docker_scripts_are_executable_and_parse(script: str) -> None:
    place = DOCKER / script
    assert os.access(place, os.X_OK)
    shell = place.read_text().splitlines()[0].rpartition("/")[2].split()[-1]
    subprocess.run([shell, "-n", place], check=True)


def test_gpu_image_installs_what_the_gpu_laboratory_runs() -> None:
    """Releases of the laboratory's lock are those of the image, TensorRT's of the Dockerfile."""
    text = (ROOT / "tests/gpu_lab/requirements.txt").read_text()
    lab = dict(re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE))
    for name in ("onnxruntime-gpu", "nvidia-ml-py", "nvidia-cuda-runtime"):
        assert release("gpu", name, "3.13") == lab[name]
    assert arguments()["TENSORRT"] == lab["tensorrt-cu13-bindings"]
