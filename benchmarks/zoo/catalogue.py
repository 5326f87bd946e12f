"""All networks by name."""

from pathlib import Path

from benchmarks.zoo import graphs, packages, timm_nets, transformers_nets
from benchmarks.zoo.entry import Entry


def catalogue(work: Path) -> dict[str, Entry]:
    """Return every network; the files of packages are kept in `work`."""
    nets = {**timm_nets.entries(), **transformers_nets.entries()}
    return {**nets, **packages.entries(work), **graphs.entries()}
