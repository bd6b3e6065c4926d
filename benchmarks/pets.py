"""Oxford-IIIT Pet's trimaps → a folder for `paca train masks`, and the scores of the embedded model's card.

    python benchmarks/pets.py make PACK OUT        # PACK: images/ and masks/ with trimaps (1 animal, 2
                                                   background, 3 border)
    paca train masks --data OUT --out runs/pets --epochs 16
    python benchmarks/pets.py score MODEL.onnx OUT # the pictures that training held out

The border between animal and background, which the trimaps leave open, is not judged.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from export.training.mask_data import CLASSES, IGNORED, IMAGES, MASKS, read_masks, split
from export.training.mask_metrics import count, score, summarise
from export.training.masks import HELD_OUT
from service.engine import Device, Engine

IDS = {1: 1, 2: 0}  # trimap → class
NAMES = ("background", "animal")
SIDE = 128  # of the grid on which the mean mask is counted


def make(pack: Path, out: Path) -> None:
    """Writes images/, masks/ and classes.txt."""
    table = np.full(256, IGNORED, np.uint8)
    for trimap, number in IDS.items():
        table[trimap] = number
    for part in (IMAGES, MASKS):
        (out / part).mkdir(parents=True, exist_ok=True)
    for path in sorted((pack / MASKS).glob("*.png")):
        with Image.open(path) as image:
            Image.fromarray(table[np.asarray(image)]).save(out / MASKS / path.name)
        shutil.copy(pack / IMAGES / f"{path.stem}.jpg", out / IMAGES)
    (out / CLASSES).write_text("\n".join(NAMES) + "\n", encoding="utf-8")


def scores(model: Path, data: Path, seed: int = 1) -> dict[str, object]:
    """Of the pictures that `paca train masks` holds out with this seed: the model, and the mean mask of those
    it trained on."""
    engine = Engine(model, Device("cpu"))
    labels, how = engine.manifest.labels, engine.manifest.preprocessing
    train, held_out = split(read_masks(data, labels), HELD_OUT, seed)
    found = score(held_out.pictures, lambda p: engine.run(p.seen(how)[None]).logits[0], labels)
    masks = [
        Image.fromarray((p.mask == 1).astype(np.uint8) * 255).resize((SIDE, SIDE)) for p in train.pictures
    ]
    mean = np.mean([np.asarray(mask, np.float32) for mask in masks], 0)
    shape = Image.fromarray((mean >= 127.5).astype(np.uint8))
    guesses = [
        count(np.asarray(shape.resize(p.mask.shape[::-1], Image.Resampling.NEAREST)), p.mask, len(labels))
        for p in held_out.pictures
    ]
    return {"model": found.to_dict(), "mean_mask_miou": round(summarise(guesses, labels).miou, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, first in (("make", "pack"), ("score", "model")):
        command = commands.add_parser(name)
        command.add_argument(first, type=Path)
        command.add_argument("data", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.pack, arguments.data)
    else:
        print(json.dumps(scores(arguments.model, arguments.data), indent=1))


if __name__ == "__main__":
    main()
