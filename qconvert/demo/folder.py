"""Folders of drawn pictures as a user would have them: files, class names and labels."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qconvert.demo.defects import CLASSES
from qconvert.demo.pictures import Picture, draw

LABELS, NAMES = "labels.csv", "classes.txt"
THREADS = 2  # most of the work holds Python's lock; more of them would wait for each other


def write(folder: Path, seed: int, count: int, tell: Callable[[int], None] | None = None) -> None:
    """Draw the first pictures of a seed into a folder, with their labels beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []

    def put(number: int) -> Picture:
        picture = draw(seed, number)
        (folder / picture.name).write_bytes(picture.jpeg())
        return picture

    with ThreadPoolExecutor(THREADS) as pool:
        for done, picture in enumerate(pool.map(put, range(count)), 1):
            rows.append(f"{picture.name},{CLASSES[picture.label]}\n")
            if tell is not None:
                tell(done)
    (folder / NAMES).write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    (folder / LABELS).write_text("file,label\n" + "".join(rows), encoding="utf-8")
