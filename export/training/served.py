"""Pictures for evaluation, read exactly as the server reads them: its own decoder and its own preprocessing,
so that what is scored is what is served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from service import images
from service.artifact import Preprocessing
from service.errors import PacaError

from .data import IMAGENETTE, DataError, Pictures, Source, list_folder, open_pack, picture_files


def read(path: Path, labels: tuple[str, ...], preprocessing: Preprocessing) -> Pictures:
    """A .npz pack, or a folder with one sub-folder a class, as the network's input (n, H, W, 3) uint8 with
    labels that index `labels`.

    A folder that holds packs answers with the one test or validation pack whose classes are the model's.
    Class folders are matched by name; WordNet ids of Imagenette count as names. Files that the server would
    refuse are skipped and listed. DataError where classes do not fit or nothing is readable.
    """
    if path.is_file():
        sources, numbers, classes = open_pack(path)
        names: list[str] = [f"row {i}" for i in range(len(sources))]
    elif packs := sorted(path.glob("*.npz")):
        return read(_test_pack(path, packs, labels), labels, preprocessing)
    else:
        folders = list_folder(path / "val" if (path / "val").is_dir() else path)
        classes = tuple(IMAGENETTE.get(p.name, p.name) for p in folders)
        files = [(number, p) for number, folder in enumerate(folders) for p in picture_files(folder)]
        sources, numbers = (
            [p.read_bytes() for _, p in files],
            np.array([number for number, _ in files], np.int64),
        )
        names = [p.relative_to(path).as_posix() for _, p in files]
    own = _match(classes, labels, path)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda source: prepare(source, preprocessing), sources))
    good = [i for i, result in enumerate(results) if isinstance(result, np.ndarray)]
    if not good:
        raise DataError(f"{path} has no readable picture")
    skipped = tuple(f"{names[i]}: {result}" for i, result in enumerate(results) if isinstance(result, str))
    stacked = np.stack([result for result in results if isinstance(result, np.ndarray)])
    return Pictures(stacked, own[numbers[good]], labels, tuple(names[i] for i in good), skipped)


def prepare(source: Source, preprocessing: Preprocessing) -> np.ndarray | str:
    """One picture as the network takes it, (H, W, 3) uint8, or why the server would refuse it."""
    try:
        if isinstance(source, np.ndarray):
            return images.preprocess(source, source.shape[1], source.shape[0], preprocessing)[0]
        decoded = images.decode(source, images.Limits(), images.needed_side(preprocessing))
        return images.preprocess(decoded.rgb, decoded.width, decoded.height, preprocessing)[0]
    except PacaError as error:
        return error.message


def _match(classes: tuple[str, ...], labels: tuple[str, ...], path: Path) -> np.ndarray:
    """The model's class id of each of the data's classes; names are compared without regard to case, spaces
    and underscores."""
    ids = {_plain(label): i for i, label in enumerate(labels)}
    if missing := [name for name in classes if _plain(name) not in ids]:
        known = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
        raise DataError(
            f"{path} has the class {missing[0]!r}, which the model does not know; it knows {known}"
        )
    return np.array([ids[_plain(name)] for name in classes], np.int64)


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _test_pack(folder: Path, packs: list[Path], labels: tuple[str, ...]) -> Path:
    fitting = []
    for pack in packs:
        if "_train" not in pack.stem:
            with np.load(pack) as content:
                if "classes" in content and {str(c) for c in content["classes"]} == set(labels):
                    fitting.append(pack)
    if len(fitting) != 1:
        found = (
            f"{len(fitting)} of its packs fit ({', '.join(p.name for p in fitting)})"
            if fitting
            else "none of its packs has the model's classes"
        )
        raise DataError(f"{folder}: {found}; name one .npz, or a folder with one sub-folder a class")
    return fitting[0]
