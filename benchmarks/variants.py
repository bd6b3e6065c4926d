"""The 13 published variants: parameters and multiply-accumulates as `paca inspect` reports them, beside what
is published.

    python benchmarks/variants.py [--save]

Parameters are compared with upstream's own code (iVMCL/PaCaViT at 4307018); MACs with the column "FLOPs" of
its README, which counts multiply-accumulates. Nothing is timed and no weights are made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from card import Row, finish

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.paca import create, variant
from export.paca.cost import macs, parameters

# millions of parameters, and the README's G; the README lists no convmixer_tiny, and 46.7 M parameters for
# convmixer_base
PUBLISHED: dict[str, tuple[float, float | None]] = {
    "pacavit_tiny_p2cconv_100_0": (12.201, 3.2),
    "pacavit_small_p2cconv_100_0": (22.038, 5.5),
    "pacavit_base_p2cconv_100_0": (46.911, 9.5),
    "pacavit_small_p2cmlp_100_0": (22.637, 5.9),
    "pacavit_small_p2cconv_2_0": (21.978, 4.7),
    "pacavit_small_p2cconv_49_0": (22.007, 5.0),
    "pacavit_small_p2cconv_49_100": (22.228, 5.3),
    "pacavit_small_p2cconv_100_49": (22.211, 5.3),
    "pacavit_small_p2cconv_100": (22.245, 5.6),
    "pacavit_small_p2cconv_100_blockwise": (24.192, 6.1),
    "pacavit_convmixer_tiny_100": (12.484, None),
    "pacavit_convmixer_small_100": (21.075, 5.4),
    "pacavit_convmixer_base_100": (47.659, 9.7),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    finish("variants", [row(name, *published) for name, published in PUBLISHED.items()], save=asked.save)


def row(name: str, millions: float, giga: float | None) -> Row:
    with torch.device("meta"):
        count = parameters(create(name))
    config = variant(name)
    return {
        "variant": name,
        "parameters": f"{count:,}",
        "upstream's code M": f"{millions:.3f}",
        "same": "yes" if round(count / 1e6, 3) == millions else "no",
        "GMAC at 224 px": f"{macs(config) / 1e9:.2f}",
        "README G": giga,
        "attention nodes": config.blocks,
        "clusterings": config.clusterings,
    }


if __name__ == "__main__":
    main()
