"""Find what objects are in pictures: COCO's JSON, YOLO's text, Pascal VOC's XML, masks.

Without a file or folder named by the user, these places are looked at, in this order, where FOLDER
holds the pictures:

- COCO: `annotations.json`, `_annotations.coco.json` or the only `instances*.json`, in FOLDER,
  beside it, or in `annotations/` beside it, there `instances_FOLDER.json` first, and none that is
  named after another folder;
- YOLO: `labels/` in FOLDER or beside it, or where `images` in a picture's path is `labels`;
- Pascal VOC: `Annotations/`, masks: `masks/`, both in the places of `labels/`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qconvert.core.errors import UsageError
from qconvert.core.number_format import count
from qconvert.images import truth_coco, truth_voc
from qconvert.images.listing import CLASSES_FILE, Classes, abbreviate, read_classes_file
from qconvert.images.truth import TrueBoxes, Truth
from qconvert.images.truth_boxes import CheckedBoxes
from qconvert.images.truth_masks import true_masks
from qconvert.images.truth_yolo import read_yaml_names, yolo_boxes

_FORMATS = (
    "COCO's JSON, or a folder with one file per picture: YOLO's .txt, Pascal VOC's .xml, or masks "
    "as .png"
)
_PICTURES_YOU_HAVE = "add the pictures, or name those that you have in a list file"
_COCO_NAMES = ("annotations.json", "_annotations.coco.json")
_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
# Folders of pictures beside which other folders say what is in them.
_PICTURE_FOLDERS = ("images", "JPEGImages")


@dataclass(frozen=True)
class TruthSet:
    """What is in pictures, None where a picture is unlabelled, and the names of the classes.

    `source` is the file or folder that says so; notes name it too, and what was left out.
    """

    truths: tuple[Truth | None, ...]
    classes: Classes
    kind: Literal["boxes", "masks"]
    source: str
    notes: tuple[str, ...] = ()

    def sampling_labels(self) -> tuple[int | None, ...]:
        """Return a label per picture for a balanced choice: the class of its objects that is rarest.

        Pictures without an object are a class of their own. Masks are not read, and have none.
        """
        present = [
            set(truth.classes.tolist()) if isinstance(truth, TrueBoxes) else None
            for truth in self.truths
        ]
        pictures = Counter(number for classes in present for number in classes or ())
        nothing = max(pictures, default=-1) + 1
        return tuple(
            None
            if classes is None
            else min(classes, key=lambda number: (pictures[number], number), default=nothing)
            for classes in present
        )


@dataclass(frozen=True)
class _Pictures:
    """The pictures that need truth: `path` names them, `names` are relative to `root`."""

    path: Path
    root: Path
    names: tuple[str, ...]

    @property
    def beside(self) -> Path:
        """The folder around the root."""
        return (self.root.resolve() if self.root.name in ("", "..") else self.root).parent


@dataclass(frozen=True)
class _FileFormat:
    """A format with one file per picture: the folder it has by custom, its suffix, its reader."""

    name: str
    folder: str
    suffix: str
    read: Callable[[_Pictures, Path, Mapping[int, Path]], TruthSet]


def find_truth(path: Path, names: Sequence[str], file: Path | None = None) -> TruthSet | None:
    """Return what is in the pictures `names` of `path`, None where nothing says so.

    `file` is what the user named, a COCO file or a folder; a CSV file holds one class for each
    picture and is read by `listing.find_labels`.
    """
    unique = tuple(dict.fromkeys(names))
    pictures = _Pictures(path, path if path.is_dir() else path.parent, unique)
    if file is None:
        truth = _search(pictures)
    elif file.suffix.lower() == ".csv":
        return None
    else:
        truth = _read_named(pictures, file)
    if truth is None or len(unique) == len(names):
        return truth
    by_name = dict(zip(unique, truth.truths, strict=True))
    truths = tuple(by_name[name] for name in names)
    return TruthSet(truths, truth.classes, truth.kind, truth.source, truth.notes)


def _search(pictures: _Pictures) -> TruthSet | None:
    for file in _coco_files(pictures):
        if file.name != _COCO_NAMES[0] or truth_coco.is_coco(file):
            truth = _read_coco(pictures, file, required=False)
            if truth is not None:
                return truth
    for layout in _FILE_FORMATS:
        folders = _partner_folders(pictures, layout)
        files = {
            index: partner
            for index, name in enumerate(pictures.names)
            if (partner := _partner_file(pictures, name, folders, layout)) is not None
        }
        if files:
            file = next(iter(files.values()))
            _require_pictures(pictures, folders, files, layout)
            around = (folder for folder in folders if file.is_relative_to(folder))
            return layout.read(pictures, next(around, file.parent), files)
    return None


def _read_named(pictures: _Pictures, file: Path) -> TruthSet:
    if file.is_dir():
        return _read_folder(pictures, file)
    if not file.exists():
        raise UsageError(f"`{file}` does not exist", hint=f"labels are {_FORMATS}")
    if file.suffix.lower() != ".json":
        raise UsageError(f"`{file}` is not a file of labels", hint=f"labels are {_FORMATS}")
    truth = _read_coco(pictures, file, required=True)
    assert truth is not None
    return truth


def _read_folder(pictures: _Pictures, folder: Path) -> TruthSet:
    """Return the truth in a folder that the user named, in the format of its files."""
    for layout in _FILE_FORMATS:
        files = {}
        for index, name in enumerate(pictures.names):
            relative = Path(name).with_suffix(layout.suffix)
            for candidate in (folder / relative, folder / relative.name):
                if candidate.is_file():
                    files[index] = candidate
                    break
        if files:
            _require_pictures(pictures, [folder], files, layout)
            return layout.read(pictures, folder, files)
    raise UsageError(
        f"`{folder}` has no file for any picture of `{pictures.path}`",
        details=[f"the first picture is `{pictures.names[0]}`"] if pictures.names else [],
        hint=f"labels are {_FORMATS}, with the picture's name",
    )


def _coco_files(pictures: _Pictures) -> Iterator[Path]:
    """Yield the files that may be COCO's, by their names."""
    folder_name = pictures.root.resolve().name
    for folder in (pictures.root, pictures.beside, pictures.beside / "annotations"):
        yield from (folder / name for name in _COCO_NAMES if (folder / name).is_file())
        own = folder / f"instances_{folder_name}.json"
        files = [own] if own.is_file() else sorted(folder.glob("instances*.json"))
        # `instances_train.json` is about the folder `train`, where there is one.
        files = [file for file in files if file == own or not _is_of_a_neighbour(pictures, file)]
        if len(files) > 1:
            raise UsageError(
                f"`{folder}` has {len(files)} COCO files",
                details=abbreviate([f"`{file.name}`" for file in files]),
                hint="name the one that is meant, with `--labels FILE`",
            )
        yield from files


def _is_of_a_neighbour(pictures: _Pictures, file: Path) -> bool:
    name = file.stem.removeprefix("instances_")
    folder = pictures.beside / name
    return bool(name) and folder.is_dir() and folder.resolve() != pictures.root.resolve()


def _read_coco(pictures: _Pictures, file: Path, required: bool) -> TruthSet | None:
    coco = truth_coco.read_coco(file)
    indices = truth_coco.match_pictures(coco, pictures.root, pictures.names)
    if not indices:
        if required:
            raise UsageError(
                f"`{file}` names no picture of `{pictures.path}`",
                details=abbreviate(truth_coco.missing_pictures(coco, indices)),
                hint="`file_name` is a path in the folder of the pictures",
            )
        return None
    missing = truth_coco.missing_pictures(coco, indices) if pictures.path.is_dir() else []
    if missing:
        raise UsageError(
            f"`{file}` lists {len(missing)} pictures that `{pictures.path}` does not have",
            details=abbreviate(missing),
            hint=_PICTURES_YOU_HAVE,
        )
    classes, numbers = truth_coco.coco_classes(coco, _listed_classes((file.parent,)))
    checked = truth_coco.coco_boxes(coco, pictures.root, pictures.names, indices, numbers)
    order = f"in the order of `{CLASSES_FILE}`"
    if not _listed_classes((file.parent,)).names:
        order = "the categories in order of their ids"
    return _box_set(pictures, "COCO", file, classes, checked, order)


def _read_yolo(pictures: _Pictures, folder: Path, files: Mapping[int, Path]) -> TruthSet:
    places = (folder, *list(folder.absolute().parents)[:2], pictures.root, pictures.beside)
    classes, order = _listed_classes(places), f"in the order of `{CLASSES_FILE}`"
    if not classes.names:
        yamls = (place / name for place in places for name in _YAML_NAMES)
        yaml = next((file for file in yamls if file.is_file()), None)
        classes = read_yaml_names(yaml) if yaml else classes
        order = (
            f"as `{yaml.name}` names them" if yaml and classes.names else "numbers without names"
        )
    checked = yolo_boxes(str(folder), pictures.root, pictures.names, files, classes)
    return _box_set(pictures, "YOLO", folder, classes, checked, order)


def _read_voc(pictures: _Pictures, folder: Path, files: Mapping[int, Path]) -> TruthSet:
    annotations = truth_voc.read_voc(files, str(folder))
    listed = _listed_classes((folder, folder.absolute().parent))
    classes = truth_voc.voc_classes(annotations, listed, str(folder))
    checked = truth_voc.voc_boxes(str(folder), pictures.root, pictures.names, annotations, classes)
    order = f"in the order of `{CLASSES_FILE}`" if listed.names else "in alphabetical order"
    return _box_set(pictures, "Pascal VOC", folder, classes, checked, order)


def _read_masks(pictures: _Pictures, folder: Path, files: Mapping[int, Path]) -> TruthSet:
    masks = true_masks(str(folder), pictures.root, pictures.names, files)
    classes = _listed_classes((folder, folder.absolute().parent))
    notes = (f"labels: masks in `{folder}` for {_share(len(files), pictures)}",)
    return TruthSet(tuple(masks), classes, "masks", str(folder), notes)


# Masks come last: a folder of .png files could also be pictures.
_FILE_FORMATS = (
    _FileFormat("YOLO", "labels", ".txt", _read_yolo),
    _FileFormat("Pascal VOC", "Annotations", ".xml", _read_voc),
    _FileFormat("masks", "masks", ".png", _read_masks),
)


def _box_set(
    pictures: _Pictures,
    name: str,
    source: Path,
    classes: Classes,
    checked: CheckedBoxes,
    order: str,
) -> TruthSet:
    labelled = [truth for truth in checked.truths if truth is not None]
    objects = sum(len(truth.boxes) for truth in labelled)
    masks = " with masks" if objects and all(truth.masks is not None for truth in labelled) else ""
    number = f"{len(classes.names)} classes" if classes.names else "classes"
    text = (
        f"labels: {name}, `{source}`: {count(objects, 'object')}{masks} in "
        f"{_share(len(labelled), pictures)}; "
        f"{number}, {order}"
    )
    return TruthSet(checked.truths, classes, "boxes", str(source), (text, *checked.notes))


def _share(labelled: int, pictures: _Pictures) -> str:
    total = len(pictures.names)
    if labelled == total:
        return count(total, "picture")
    return f"{labelled} of {total} pictures, the others are unlabelled"


def _listed_classes(folders: Sequence[Path]) -> Classes:
    """Return the classes of the first `classes.txt` in these folders."""
    files = (folder / CLASSES_FILE for folder in folders)
    return next((read_classes_file(file) for file in files if file.is_file()), Classes())


def _partner_folders(pictures: _Pictures, layout: _FileFormat) -> list[Path]:
    """Return the folders that may have a file for each picture, of those that exist."""
    folders = [pictures.root / layout.folder, pictures.beside / layout.folder]
    replaced = _replace_folder(pictures.root, layout.folder)
    folders += [replaced] if replaced else []
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _partner_file(
    pictures: _Pictures, name: str, folders: Sequence[Path], layout: _FileFormat
) -> Path | None:
    """Return the file of a picture, in these folders or where its own name says `images`."""
    if not folders and not any(folder in name for folder in _PICTURE_FOLDERS):
        return None
    relative = Path(name).with_suffix(layout.suffix)
    replaced = _replace_folder(relative, layout.folder)
    candidates = [folder / relative for folder in folders]
    candidates += [pictures.root / replaced] if replaced else []
    return next((file for file in candidates if file.is_file()), None)


def _replace_folder(path: Path, folder: str) -> Path | None:
    """Return a path in which the last `images` is another folder."""
    parts = list(path.parts)
    places = [place for place, part in enumerate(parts) if part in _PICTURE_FOLDERS]
    if not places:
        return None
    parts[places[-1]] = folder
    return Path(*parts)


def _require_pictures(
    pictures: _Pictures, folders: Sequence[Path], files: Mapping[int, Path], layout: _FileFormat
) -> None:
    """Refuse files of two pictures, masks among the pictures, and files without a picture.

    A list of pictures may leave some of a data set out, a folder may not.
    """
    used = Counter(files.values())
    if shared := [f"`{file}`" for file, count in used.items() if count > 1]:
        raise UsageError(
            f"{len(shared)} files of labels belong to more than one picture each",
            details=abbreviate(shared),
            hint="put them into the same folders as the pictures, and give each picture a name of "
            "its own",
        )
    if own := [f"`{name}`" for name in pictures.names if pictures.root / name in used]:
        raise UsageError(
            f"{len(own)} of the pictures of `{pictures.path}` are masks of others",
            details=abbreviate(own),
            hint="name the folder that holds only the pictures",
        )
    if not pictures.path.is_dir():
        return
    unused = [
        file
        for folder in folders
        if any(file.is_relative_to(folder) for file in used)
        for file in sorted(folder.rglob(f"*{layout.suffix}"))
        if file not in used and file.name != CLASSES_FILE
    ]
    if unused:
        raise UsageError(
            f"{len(unused)} files of `{unused[0].parent}` have no picture in `{pictures.path}`",
            details=abbreviate([f"`{file}`" for file in unused]),
            hint=_PICTURES_YOU_HAVE,
        )
