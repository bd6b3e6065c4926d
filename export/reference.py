"""The pictures against which a model's novelty is measured: known ones, some of them held out, and, where the
user names any, foreign ones.

Which pictures are fitted on and which judge is decided here, and they are run through the very file that will
be served. The formula belongs to `service.novelty`, the fit to `novelty`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from service.engine import Device, Engine
from service.folders import list_pictures
from service.novelty import Statistics

from .annotate import annotate_novelty
from .errors import ExportError
from .novelty import FEWEST, MOST, Outputs, evenly, fit, rescored, worth
from .pictures import PACK_SHARE, How, Source, open_pack, prepare_all
from .training.drawings import drawings
from .training.foreign import read_foreign
from .training.split import split_folder

FOLDER_SHARE = 0.2  # held out, where nothing says which
SEED = 1  # of the split, as training has it
BATCH = 16


@dataclass(frozen=True)
class Reference:
    """Pictures as the network takes them, (n, H, W, 3) uint8. held_out: that neither training nor fit saw.
    known, foreign: to fit on; unseen: foreign ones of other kinds. drawings: of other generators than those
    that are fitted on. fitted: what training found, in place of a fit. held: how `held_out` was chosen."""

    held_out: np.ndarray
    drawings: np.ndarray
    known: np.ndarray | None = None
    foreign: np.ndarray | None = None
    unseen: np.ndarray | None = None
    fitted: Statistics | None = None
    held: str = ""

    def statistics(self, engine: Engine) -> Statistics | None:
        """As this very file answers the pictures; None where too few are held out, or where the model has no
        tokens. measured: what a flag at the usual threshold is worth."""
        if self.missing(engine):
            return None
        held_out = answers(engine, self.held_out)
        found: Statistics | None
        if self.known is not None:
            foreign = None if self.foreign is None else answers(engine, self.foreign)
            found = fit(answers(engine, self.known), held_out, foreign)
        else:
            found = rescored(self.fitted, held_out) if self.fitted else None
        if found is None:
            return None
        drawn = answers(engine, self.drawings)
        unseen = None if self.unseen is None else answers(engine, self.unseen)
        measured = worth(found, held_out, drawn, unseen)
        earlier = self.fitted.measured if self.fitted else {}
        return dataclasses.replace(found, measured={**earlier, **measured})

    def missing(self, engine: Engine) -> str | None:
        """Why there can be no statistics for this model; None where there can."""
        if not engine.manifest.has_tokens:
            return "the model has no tokens to measure it on"
        if len(self.held_out) < FEWEST:
            return f"{len(self.held_out)} held-out reference pictures, at least {FEWEST} are needed"
        return None


def write_novelty(path: Path, reference: Reference) -> tuple[Statistics | None, str]:
    """Puts statistics into a model file, as this very file answers the reference pictures; returns them with
    a remark, None with the reason where there can be none. Nothing else in the file changes."""
    engine = Engine(path, Device("cpu"))
    try:
        found = reference.statistics(engine)
    except ValueError as error:
        raise ExportError(f"no novelty can be fitted: {error}") from None
    if found is None:
        return None, f"no novelty: {reference.missing(engine)}"
    proto = onnx.load(path)
    annotate_novelty(proto, found)
    onnx.save(proto, path)
    return found, (
        f"novelty: scores of {len(reference.held_out)} held-out pictures ({reference.held}); they must be "
        "pictures that training did not see"
    )


def answers(engine: Engine, pictures: np.ndarray) -> Outputs:
    """(logits (n, K), pooled tokens (n, C)) as the server gets them."""
    size = min(BATCH, engine.max_batch or BATCH)
    found = [engine.run(pictures[i : i + size], ("tokens",)) for i in range(0, len(pictures), size)]
    return np.concatenate([f.logits for f in found]), np.concatenate(
        [f.arrays["tokens"].mean(1) for f in found]
    )


def read_reference(path: Path, foreign: Path | None, how: How, record: Path) -> Reference:
    """From a pack, whose last tenth is held out, or a folder with one sub-folder a class: its own parts, the
    split that `record` holds, or a fifth of every class. foreign: a pack, or a folder with one sub-folder a
    kind; the unseen fifth of its kinds judges. DataError where either cannot be used."""
    known, held_out, held = _pack(path, how) if path.is_file() else _folder(path, how, record)
    drawn = drawings(how, unseen=True)
    if foreign is None:
        return Reference(held_out, drawn, known, held=held)
    others = read_foreign(foreign, how, MOST)
    negatives = np.concatenate([others.train.images, drawings(how)])
    return Reference(held_out, drawn, known, negatives, others.unseen.images, held=held)


def of_training(fitted: Statistics, folder: Path, how: How) -> Reference | None:
    """What a training fitted, with the held-out pictures that it wrote into `folder`; None where there are
    none."""
    files = list_pictures(folder).pictures if folder.is_dir() else ()
    if not files:
        return None
    drawn = drawings(how, unseen=True)
    return Reference(_read(files, how), drawn, fitted=fitted, held=f"the pictures in {folder.name}/")


def _pack(path: Path, how: How) -> tuple[np.ndarray, np.ndarray, str]:
    """(known, held out, how it was chosen)."""
    sources = open_pack(path)[0]
    kept = len(sources) - int(len(sources) * PACK_SHARE)
    return _read(sources[:kept], how), _read(sources[kept:], how), f"the last tenth of {path.name}"


def _folder(path: Path, how: How, record: Path) -> tuple[np.ndarray, np.ndarray, str]:
    split = split_folder(path, how, record, FOLDER_SHARE, SEED)
    known, held_out = (p.take(evenly(len(p))).images for p in (split.train, split.held_out))
    return known, held_out, f"a part of {path.name}"


def _read(sources: Sequence[Source], how: How) -> np.ndarray:
    """Of up to MOST, evenly spaced; what the server would refuse is passed over."""
    images, reasons = prepare_all([sources[row] for row in evenly(len(sources))], how)
    return images[[reason is None for reason in reasons]]
