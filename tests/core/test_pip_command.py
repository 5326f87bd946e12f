"""The pip commands that hints show, for every way that qconvert can have been installed."""

import json
from pathlib import Path

import pytest

from qconvert.core.pip_command import pip_install

METADATA = """Metadata-Version: 2.4
Name: qconvert
Version: 0.1
Requires-Dist: onnxruntime>=1.24; extra == 'cpu'
Requires-Dist: torch>=2.9; extra == 'torch'
Requires-Dist: qconvert[torch]; extra == 'timm'
Requires-Dist: timm>=1; extra == 'timm'
Requires-Dist: plugin>=0.5; (sys_platform == 'linux' or sys_platform == 'win32') and extra == 'rtx'
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, direct_url: object = None) -> None:
    """Make the metadata that pip leaves behind the first that Python finds."""
    info = folder / "site" / "qconvert-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    if direct_url:
        (info / "direct_url.json").write_text(json.dumps(direct_url))
    monkeypatch.syspath_prepend(folder / "site")


def test_checkout_is_named_with_its_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "my code"
    checkout.mkdir()
    install(tmp_path, monkeypatch, {"url": checkout.as_uri(), "dir_info": {}})
    assert pip_install("cpu,torch") == f'pip install "{checkout}[cpu,torch]"'


def test_editable_checkout_stays_editable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, {"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert pip_install("cpu", "timm") == f'pip install -e "{tmp_path}[cpu]" timm'


def test_wheel_and_repository_are_named_by_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "qconvert-0.1-py3-none-any.whl"
    wheel.touch()
    install(tmp_path / "a", monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert pip_install("cpu") == f'pip install "qconvert[cpu] @ {wheel.as_uri()}"'
    url = "https://example.org/qconvert.git"
    vcs = {"vcs": "git", "commit_id": "abc123"}
    install(tmp_path / "b", monkeypatch, {"url": url, "vcs_info": vcs})
    assert pip_install("cpu") == f'pip install "qconvert[cpu] @ git+{url}@abc123"'


def test_requirements_are_listed_when_the_source_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, {"url": "file:///no/such/folder", "dir_info": {}})
    assert pip_install("cpu") == 'pip install "onnxruntime>=1.24"'
    assert pip_install("timm") == 'pip install "torch>=2.9" "timm>=1"'
    plugin = "plugin>=0.5; sys_platform == 'linux' or sys_platform == 'win32'"
    assert pip_install("rtx") == f'pip install "{plugin}"'
