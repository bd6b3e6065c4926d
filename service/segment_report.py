"""A segmentation as one HTML page that can be mailed: the photo with its regions, the map, and each class's
area.

No script, no other host, no file beside it, as `report`'s pages.
"""

from __future__ import annotations

import base64
from html import escape

from .report import STYLE
from .results import Picture, Segment, SegmentResult

NOTE = (
    "Area: the part of the picture that the class takes. Score: the mean probability over its pixels, given "
    "that "
    "each pixel is one of the model's classes."
)


def segment_report(result: SegmentResult) -> str:
    """The page."""
    image = result.image
    title = ", ".join(segment.label for segment in result.segments[:3]) or "nothing"
    pictures = {"Regions on the photo": result.images.get("overlay"), "The label map": result.map}
    figures = "".join(_figure(picture, caption) for caption, picture in pictures.items() if picture)
    rows = "".join(_row(segment) for segment in result.segments)
    clusters = "".join(
        _figure(segment.cluster, f"What the cluster of “{segment.label}” gathers")
        for segment in result.segments
        if segment.cluster
    )
    warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in result.warnings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>"
        f'<p class="quiet">{escape(result.model)} version {escape(result.model_version)} on a '
        f"{escape(image.format)} picture of {image.width} x {image.height} pixels</p>{warnings}"
        f'<section><div class="row">{figures}</div></section>'
        f"<section><h2>Classes</h2><table><tr><th>class</th><th></th><th>area</th><th>score</th></tr>{rows}</table>"
        f'<p class="quiet">{escape(NOTE)}</p></section>'
        + (f'<section><h2>Clusters</h2><div class="row">{clusters}</div></section>' if clusters else "")
        + "</body></html>"
    )


def _row(segment: Segment) -> str:
    colour = "#" + bytes(segment.colour).hex()
    return (
        f'<tr><td><span class="swatch" style="background:{colour}"></span>{escape(segment.label)}</td>'
        f'<td class="bar"><div class="track"><i style="width:{100 * segment.area:.1f}%"></i></div></td>'
        f'<td class="n">{100 * segment.area:.1f} %</td><td class="n">{segment.score:.2f}</td></tr>'
    )


def _figure(picture: Picture, caption: str) -> str:
    data = base64.b64encode(picture.data).decode()
    return (
        f'<figure><img width="{picture.width}" height="{picture.height}" alt="{escape(caption)}" '
        f'src="data:{picture.mime};base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )
