"""Which sub-folders of a data set are its training, validation and test parts, under the names that people
and tools give them.

A folder that only looks like a data set with parts is refused with the reason: taken for classes, `train` and
`val` would be learned as if they were cats and dogs, and nobody would hear of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from service.folders import is_hidden, normal, sub_folders, walk, why_no_picture

from .pictures import DataError

# role → the names that people, Kaggle, Roboflow, Keras, Hugging Face and torchvision give such a folder
ROLES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validate", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
# classes may have these names, where pictures stand in the folder itself: train and car, valid and invalid
CLASSES_TOO = {"train", "valid"}
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
_ENDING = re.compile(r"(?<=[a-z])[ _.-]*(set|split|part|data|images|imgs|\d{4})$")  # training_set, val2017
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Parts:
    """The parts that a data set has; each holds one sub-folder a class. notes: what stands beside them and is
    not read."""

    train: Path | None
    val: Path | None
    test: Path | None
    notes: tuple[str, ...] = ()


def role_of(name: str) -> str | None:
    """ "train", "val" or "test" for a folder of that name, in any case; None for any other."""
    plain = normal(name).casefold()
    return _ROLE_OF.get(plain) or _ROLE_OF.get(_ENDING.sub("", plain))


def find_parts(folder: Path) -> Parts | None:
    """The parts of the data set in `folder`; None where its sub-folders are classes. DataError where that
    cannot be told, with the reason."""
    try:
        folders = sub_folders(folder)
    except OSError:
        return None
    named = {path: role for path in folders if (role := role_of(path.name))}
    others = [path for path in folders if path not in named]
    if not named:
        _refuse_unknown_parts(folder, folders)
        return None
    labelled = [path for path in named if _holds_classes(path)]
    if others and not labelled and all(normal(path.name).casefold() in CLASSES_TOO for path in named):
        return None
    others = [path for path in others if _holds_pictures(path)]
    _refuse_doubtful(folder, named, labelled, others)
    by_role = {named[path]: path for path in labelled}
    notes = [f"{path.name}/ is no part of the data set by its name: not read" for path in others]
    notes += [
        f"{path.name}/ has no class folders, so nobody knows what its pictures show: not used"
        for path in named
        if path not in labelled
    ]
    return Parts(by_role.get("train"), by_role.get("val"), by_role.get("test"), tuple(notes))


def _refuse_doubtful(folder: Path, named: dict[Path, str], labelled: list[Path], others: list[Path]) -> None:
    """Whatever could be read in two ways."""
    shown = ", ".join(f"{path.name}/" for path in named)
    if not labelled and not others:
        raise DataError(
            f"{folder}: {shown} must hold one sub-folder a class; if they are classes themselves, rename them"
        )
    if others and (not labelled or len(set(named.values())) == 1):
        raise DataError(
            f"{folder}: {shown} looks like a part of a data set, but class folders such as {others[0].name}/ "
            "stand beside it; put those into train/, or rename it if it is a class"
        )
    for role in ROLES:
        alike = [f"{path.name}/" for path in labelled if named[path] == role]
        if len(alike) > 1:
            raise DataError(
                f"{folder} has {len(alike)} folders for one part ({', '.join(alike)}); keep one of them"
            )


def _refuse_unknown_parts(folder: Path, folders: list[Path]) -> None:
    """`seg_train/` and `seg_test/` with the same folders in each are parts under names not known here."""
    words = [set(_WORD.findall(normal(path.name).casefold())) & _ROLE_OF.keys() for path in folders]
    if not any(words):
        return
    suspects = [path for path, found in zip(folders, words, strict=True) if found]
    inside = [_class_names(suspect) for suspect in suspects]
    if any(len(names) > 1 and inside.count(names) > 1 for names in inside):
        raise DataError(
            f"{folder}: {', '.join(path.name + '/' for path in suspects)} look like parts of a data set "
            "(they hold the same folders); name them train/, val/ and test/"
        )


def _class_names(folder: Path) -> frozenset[str]:
    """What the folders in it are called; archives like to wrap a folder into another one."""
    folders = sub_folders(folder)
    while len(folders) == 1:
        folders = sub_folders(folders[0])
    return frozenset(path.name for path in folders)


def _holds_classes(folder: Path) -> bool:
    """Whether pictures stand in sub-folders, and none in the folder itself."""
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not is_hidden(path.name)]
    except OSError:
        return False
    return not any(why_no_picture(path) is None for path in files) and _holds_pictures(folder)


def _holds_pictures(folder: Path) -> bool:
    return any(isinstance(item, Path) for item in walk(folder))
