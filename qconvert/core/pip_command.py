"""The pip command that installs what an extra of qconvert names, as typed on this machine."""

import json
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def pip_install(extras: str, *packages: str) -> str:
    """Return the pip command that adds `extras`, such as `cpu,torch`, and other packages.

    Where qconvert came from a checkout, a file or a repository that pip wrote down (PEP 610), that
    is named; no index is assumed to have it, so that otherwise the packages themselves are listed.
    """
    try:
        distribution = metadata.distribution("qconvert")
    except metadata.PackageNotFoundError:
        needed = [f'"qconvert[{extras}]"']
    else:
        direct = json.loads(distribution.read_text("direct_url.json") or "null")
        needed = _source(direct, extras) if direct else []
        requirements = _requirements(distribution.requires or [], extras)
        needed = needed or [f'"{requirement}"' for requirement in requirements]
    return " ".join(["pip install", *needed, *packages])


def _source(direct: dict[str, Any], extras: str) -> list[str]:
    """Return the arguments that install qconvert from where it came from, if that still exists."""
    url, path = direct["url"], Path(unquote(urlsplit(direct["url"]).path))
    if vcs := direct.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    elif url.startswith("file:") and not path.exists():  # such as the build stage of an image
        return []
    elif path.is_dir():
        editable = ["-e"] if direct.get("dir_info", {}).get("editable") else []
        return [*editable, f'"{path}[{extras}]"']
    return [f'"qconvert[{extras}] @ {url}"']


def _requirements(requires: Sequence[str], extras: str) -> list[str]:
    """Return the requirements of extras, with their other markers."""
    needed: list[str] = []
    for extra in extras.split(","):
        for requirement in requires:
            name, _, marker = (part.strip() for part in requirement.partition(";"))
            if not re.search(rf"""extra == ["']{re.escape(extra)}["']""", marker):
                continue
            if own := re.match(r"qconvert\[(.+)\]", name):
                needed += _requirements(requires, own[1])
                continue
            rest = re.sub(r"""\(?(.*?)\)?( and )?extra == ["'][^"']+["']""", r"\1", marker)
            needed.append(f"{name}; {rest}".replace('"', "'") if rest else name)
    return list(dict.fromkeys(needed))
