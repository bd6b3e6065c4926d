"""Colours that do not lie: perceptually even maps, a diverging one for signed numbers, and a palette for
clusters.

viridis, inferno, magma (S. van der Walt, N. Smith) and cividis (Nunez, Anderton, Renslow 2018) get lighter
evenly from end to end, also for colour-blind eyes and in grey print; there is no rainbow on purpose. Their
256 rows are matplotlib's own (public domain, CC0), stored as zlib-compressed differences.
"""

from __future__ import annotations

import base64
import colorsys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def _unpack(text: str) -> np.ndarray:
    steps = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.int8).reshape(3, 256)
    return np.cumsum(steps, axis=1, dtype=np.int64).T.astype(np.uint8)


def _ramp(*stops: str) -> np.ndarray:
    """(256, 3) uint8: straight lines through evenly spaced #rrggbb stops."""
    values = np.array([list(bytes.fromhex(stop)) for stop in stops], float)
    at = np.linspace(0, len(stops) - 1, 256)
    return np.round(
        np.stack([np.interp(at, np.arange(len(stops)), values[:, c]) for c in range(3)], 1)
    ).astype(np.uint8)


@dataclass(frozen=True)
class ColourMap:
    """Colours of numbers from 0 up. note: for people who choose. table: (256, 3) uint8, row 0 = no relevance,
    row 255 = the strongest."""

    name: str
    note: str
    table: np.ndarray


_ROWS = (
    ColourMap(
        "viridis",
        "Dark blue over green to yellow: even for every eye, in grey print too.",
        _unpack(
            "c-n<hi4lY#3{0@KE8+St<xsL4Sjp&Rzu+jyOg`opECkc)X`Q6qnhK3HNo_OG;RhV>kb4UegZDb1pdhW1hA(9608i7%o<`5u+O6#W6MI|R-q~_nLKyo3Fq1@l=e3($blyl0"
            "DjP1z=#&|HsQxfvb9OjPgHv1mpkyG8q{bp%?-(;)vb7T{kBAB"
        ),
    ),
    ColourMap(
        "inferno",
        "Black over red to pale yellow: the widest range from dark to light.",
        _unpack(
            "c-nnYff9uv2!rhX{~u?`HW6PJ%pqLTG0e>d{DJHs!U>Qs;e$R4<q|F;;(*eOB!nkOv@Yrca*^RRewRH^w6*urP6u^geWN|pynv!x9d(YM%G6!t7O)v|#%cbNLw)LdoUU&g"
            "Nobki>0F5>sw(}<pOS}zaOtF1yLP_vOejQK(?U6N(<p5Kb`Gcg5T42nM;>jU"
        ),
    ),
    ColourMap(
        "magma",
        "Black over purple to pale pink: like inferno, softer.",
        _unpack(
            "c-nnZ0TRO?2ov1@zwB-SL$G!b1Lv7mfnj3+W>_$1*l-6$vculB^q1sG_f&LnT*IwwB;bXl<Uh79*?xVvf`0)m>K0|9YP!<*pnj$WHo~<BT6(W=N!o!IuJjWh_vy5m1SCzK"
            "_+2Be79*q0Xg#o_&`SykB*7c7NQn@fO{<x$$z{pxF?9O+h+oRdEx7"
        ),
    ),
    ColourMap(
        "cividis",
        "Blue to yellow: looks almost the same to people who see no red or no green.",
        _unpack(
            "c-oCp0TO^92m|ybJ*fY`MiW5;#j7#KtPU>}AOz-=Qz8LMC~@csu(_o|`0~&r2K{(Un<G<L+K*nk893UNFaH;(4yG)2%Y)gipR5@le9V+?<nv{!@JY7;K<)RSPEmbpcx}8v"
            "Cz^w}e(oDD`<v{vGDFy8rih@Z6b?ok2t7^bLmv"
        ),
    ),
)
# By name; the first is the default. A new one is a row above and its test.
COLOUR_MAPS = {row.name: row for row in _ROWS}
DEFAULT_COLOUR_MAP = next(iter(COLOUR_MAPS))

# (256, 3) uint8: row 0 = strongest against, the middle = nothing, row 255 = strongest for. Blue and orange
# stay apart in every colour blindness.
DIVERGING = _ramp("08519c", "3d8fd1", "9ecbe8", "f7f7f7", "fdc38d", "f5872b", "c24700")

# Okabe & Ito 2008, without black: eight clusters that stay apart in every colour blindness. (8, 3) uint8.
CLUSTERS = np.array(
    [
        list(bytes.fromhex(c))
        for c in ("e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "999999")
    ],
    np.uint8,
)


# names of classes that are what is left over: overlays leave the photo there as it is
LEFT_OVER = frozenset({"background", "_background_", "void", "unlabeled", "unlabelled", "other"})
GOLDEN_ANGLE = 0.381966  # of the colour circle: hues one after the other are far apart, however many


def class_colours(labels: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """A colour (R, G, B) for every class of a label map: first those of `CLUSTERS`, then hues that go round;
    black for a class that is what is left over."""
    hues = [
        colorsys.hsv_to_rgb(i * GOLDEN_ANGLE % 1, 0.55 + 0.35 * (i % 2), 0.95 - 0.1 * (i % 3))
        for i in range(256)
    ]
    others = [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]
    free = iter([*((int(r), int(g), int(b)) for r, g, b in CLUSTERS), *others])
    return tuple((0, 0, 0) if label.strip().casefold() in LEFT_OVER else next(free) for label in labels)


def css_gradient(table: np.ndarray, stops: int = 17) -> str:
    """A CSS linear-gradient from a table's first row (left) to its last (right), for a colour bar."""
    rows = table[np.linspace(0, 255, stops).round().astype(int)]
    return f"linear-gradient(to right,{','.join('#' + row.tobytes().hex() for row in rows)})"
