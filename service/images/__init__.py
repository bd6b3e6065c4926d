"""Bytes of a picture → upright RGB → what the network wants. Reading bodies and batches are others' work.

A picture takes these steps; whatever goes wrong is an InvalidInput (or Overloaded), never a decoder's own
exception:
 1. `formats`    the table of formats; which one the first bytes are of
 2. `screens`    size and limits from the header, orientation, only the bytes that make the pixels; no decoder
                 has run yet
 3. `pixels`     Pillow decodes; reduced where the caller needs less, upright, as a person sees it: alpha on
                 white, 16 bit, CMYK, palettes, grey
 4. `process`    the same in a process that can be stopped, for the few pictures whose cost the header does
                 not bound
 5. `placement`  the network's input, and where on the picture it lies
`reader` is all of it in one call, `read(data, limits, preprocessing)`: the only way from a file to a
network's input, for the server as for training, evaluation and calibration. `decoding` runs it in the right
threads.

Not done, and said: ICC profiles are ignored; of animations and multi-picture files the first picture is used,
with a warning.
"""

from __future__ import annotations

from .decoding import DecodePool
from .formats import FORMAT_NAMES, MEDIA_TYPES, accepted, recognise, screen
from .placement import Placement, needed_side, preprocess
from .reader import Decoded, NetworkInput, decode, decode_source, prepare, read
from .source import Limits, Source

__all__ = [
    "FORMAT_NAMES",
    "MEDIA_TYPES",
    "DecodePool",
    "Decoded",
    "Limits",
    "NetworkInput",
    "Placement",
    "Source",
    "accepted",
    "decode",
    "decode_source",
    "needed_side",
    "prepare",
    "preprocess",
    "read",
    "recognise",
    "screen",
]
