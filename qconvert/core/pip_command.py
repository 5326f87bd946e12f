"""The pip command that installs what an extra of qconvert names, as typed on this machine."""

import importlib.metadata
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit


def pip_install(extras: str, *packages: str) -> str:
    """Return the pip command that adds `extras`, such as `cpu,torch`, and other packages.

    Where qconvert came from a checkout, a file or a repository that pip wrote down (PEP 610), that
    is named; no index is assumed to have it, so that otherwise the packages themselves are listed.
    """
    editable, source = _source()
    needed = [source.format(extras=extras)] if source else _requirements(extras)
    flag = ["-e"] if editable else []
    return " ".join(["pip install", *flag, *(f'"{item}"' for item in needed), *packages])


def _source() -> tuple[bool, str]:
    """Return whether qconvert is installed editable, and from where, with a place for extras."""
    try:
        text = importlib.metadata.distribution("qconvert").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        text = None
    if not text:
        return False, ""
    direct = json.loads(text)
    url = direct["url"]
    if "vcs_info" in direct:
        vcs = direct["vcs_info"]
        return False, f"qconvert[{{extras}}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    path = Path(unquote(urlsplit(url).path))
    if url.startswith("file:") and not path.exists():  # such as the build stage of an image
        return False, ""
    if path.is_dir():
        return direct.get("dir_info", {}).get("editable", False), f"{path}[{{extras}}]"
    return False, f"qconvert[{{extras}}] @ {url}"


def _requirements(extras: str) -> list[str]:
    """Return the requirements of extras, with their other markers."""
    try:
        requires = importlib.metadata.requires("qconvert") or []
    except importlib.metadata.PackageNotFoundError:
        return [f"qconvert[{extras}]"]
    needed: list[str] = []
    for extra in extras.split(","):
        for requirement in requires:
            name, _, marker = (part.strip() for part in requirement.partition(";"))
            if not re.search(rf"""extra == ["']{re.escape(extra)}["']""", marker):
                continue
            if own := re.match(r"qconvert\[(.+)\]", name):
                needed += _requirements(own[1])
                continue
            rest = re.sub(r"""\(?(.*?)\)?( and )?extra == ["'][^"']+["']""", r"\1", marker)
            needed.append(f"{name}; {rest}".replace('"', "'") if rest else name)
    return list(dict.fromkeys(needed))
