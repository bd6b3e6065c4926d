"""An answer as one HTML page that can be mailed: photo, predictions, overlays with their scale, clusters by
share, and how to read all of it.

No script, no other host, no file beside it: pictures are data URIs, colours follow the reader's light or dark
setting. Every text from outside (labels, warnings) is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from html import escape

import numpy as np

from .colours import CLUSTERS, COLOUR_MAPS, DIVERGING, css_gradient
from .methods import METHODS
from .render import RENDERS
from .results import (
    Check,
    Cluster,
    ExplainResult,
    Explanation,
    Fading,
    Heatmap,
    Picture,
    Prediction,
    TargetInfo,
)

SHARE_NOTE = (
    "Share: the part of the class evidence located in the cluster, in logits; the shares of all clusters of "
    "a stage and the bias sum to the logit. It says "
    "where evidence lies, not what would happen without the cluster. Area: the part of the picture where the "
    "cluster is the strongest."
)
AGNOSTIC_NOTE = (
    "Clusters sorted by how much of the picture they take. Area: the part of the picture where the cluster "
    "is the strongest."
)
PARTS_NOTE = (
    "Parts: groups of patches that look alike to the network, made from its own tokens for this picture. It "
    "did not decide by them. Share: the part of the class evidence located in the part, in logits; the "
    "shares of all parts and the bias sum to the logit."
)
EFFECT_NOTE = (
    " Effect: how much the logit would change, to first order, if the model attended more to the cluster."
)

STYLE = """
:root{color-scheme:light dark;--paper:#faf9f6;--card:#fff;--ink:#16201f;--quiet:#55615f;--line:#e3e1da;
--track:#eceae3;
--for:#c24700;--against:#08519c;--accent:#0d6e66}
@media(prefers-color-scheme:dark){:root{--paper:#0f1415;--card:#171e1f;--ink:#e9eeec;--quiet:#9aa8a5;
--line:#293233;--track:#263031;
--for:#f5872b;--against:#6baee5;--accent:#4fc3b1}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:2rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;
font-variant-numeric:tabular-nums}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.25rem;margin:0 0 .5rem}h3{font-size:1rem;
margin:1.5rem 0 .5rem}p{margin:.5rem 0;max-width:46rem}
.quiet,figcaption,footer{color:var(--quiet);font-size:.875rem}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1.25rem;
margin:1.25rem 0;break-inside:avoid-page}
.warning{border-left:4px solid var(--for);padding-left:.75rem}
.row{display:flex;flex-wrap:wrap;gap:1.25rem}figure{margin:0;flex:1 1 18rem;max-width:30rem}
img{display:block;max-width:100%;height:auto;border-radius:8px;background:var(--track)}
.bits{image-rendering:pixelated}
table{border-collapse:collapse;width:100%}th{font-weight:600;text-align:left;color:var(--quiet);
font-size:.875rem}
td,th{padding:.35rem .75rem .35rem 0;border-top:1px solid var(--line);vertical-align:middle}
tr:first-child>*{border-top:0}
td.n{text-align:right;white-space:nowrap}
td.bar{width:40%;min-width:3rem}.track{background:var(--track);border-radius:3px;height:.7rem;overflow:hidden}
.track>i{display:block;height:100%;background:var(--accent)}
.track>i.for{background:var(--for)}.track>i.against{background:var(--against)}
.swatch{display:inline-block;width:.8rem;height:.8rem;border-radius:3px;vertical-align:-.05rem;
margin-right:.4rem}
.scale{max-width:30rem;margin:1rem 0}.scale>div:first-child{height:.9rem;border-radius:4px;
border:1px solid var(--line)}
.ticks{display:flex;justify-content:space-between;font-size:.875rem}td img{width:clamp(5.5rem,24vw,11rem);
max-width:none}
@media print{body{background:#fff}section{border-color:#ccc}}
"""


def render_report(explained: ExplainResult, colormap: str, photo: Picture | None = None) -> str:
    """The page. colormap: the one that the overlays were drawn with. photo: the picture itself, if it is to
    be shown beside the overlays."""
    return "".join(report_pieces(explained, colormap, photo))


def report_pieces(explained: ExplainResult, colormap: str, photo: Picture | None = None) -> Iterator[str]:
    """The page of `render_report` in pieces, the largest of them one explanation."""
    image = explained.image
    top = explained.predictions[0] if explained.predictions else None
    title = f"{top.label}, {_percent(top.score)}" if top else "No prediction"
    novel = bool(explained.novelty and explained.novelty.is_novel)
    if novel:
        title = f"Probably none of the classes. Nearest: {title}"
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>"
        f'<p class="quiet">{escape(explained.model)} version {escape(explained.model_version)} on a '
        f"{escape(image.format)} picture of "
        f"{image.width} × {image.height} pixels, answered in {explained.timings.total:.0f} ms</p>"
    )
    yield from (f'<p class="warning">{escape(warning)}</p>' for warning in explained.warnings)
    says = "What the model would say if it had to be one of them" if novel else "What the model says"
    yield f'<section><h2>{says}</h2><div class="row">'
    if photo:
        yield _figure(photo, "the photo", "the photo as it was sent")
    yield f'<div style="flex:2 1 20rem">{_predictions(explained.predictions)}</div></div></section>'
    yield from (_explanation(explanation, colormap) for explanation in explained.explanations)
    yield (
        "<footer><p>Made by paca-serve. Boxes and centroids are pixels of the upright original, from its top "
        "left corner. An explanation shows what this model used, not what is true of the picture.</p>"
        "</footer></body></html>\n"
    )


def _predictions(predictions: Iterable[Prediction]) -> str:
    rows = (
        f'<tr><td>{escape(p.label)}</td><td class="bar">{_track(p.score)}</td><td class="n">'
        f'{_percent(p.score)}</td><td class="n">{p.logit:.2f}</td></tr>'
        for p in predictions
    )
    return f"<table><tr><th>class</th><th></th><th>probability</th><th>logit</th></tr>{''.join(rows)}</table>"


def _explanation(explanation: Explanation, colormap: str) -> str:
    method = explanation.method
    facts = ["depends on the class" if method.class_specific else "does not depend on any class"]
    facts.append("adds up to the logit" if method.complete else "does not add up to the logit")
    facts.append(
        f"{method.gradients} gradient pass"
        if method.gradients == 1
        else f"{method.gradients} gradient passes"
    )
    return "".join(
        [
            f"<section><h2>{_heading(explanation)}</h2><p>Method <b>{escape(method.name)}</b>: "
            f"{', '.join(facts)}. {METHODS[method.name].note}</p>",
            f'<p class="warning">{escape(method.fallback)}</p>' if method.fallback else "",
            _account(explanation),
            '<div class="row">'
            f"{''.join(_drawn(explanation, name, picture) for name, picture in explanation.images.items())}"
            "</div>",
            _scale(explanation.heatmap, colormap) if explanation.heatmap else "",
            _fading(explanation.fading) if explanation.fading else "",
            _check(explanation.check) if explanation.check else "",
            _clusters(explanation) if explanation.clusters else "",
            _parts(explanation) if explanation.parts else "",
            "</section>",
        ]
    )


def _heading(explanation: Explanation) -> str:
    if explanation.target is None or not explanation.method.class_specific:
        return METHODS[explanation.method.name].title
    against = f", and not {_name(explanation.contrast)}" if explanation.contrast else ""
    return f"Why {_name(explanation.target)}{against}?"


def _name(target: TargetInfo) -> str:
    return f"“{escape(target.label)}”"


def _account(explanation: Explanation) -> str:
    sums = explanation.completeness
    if sums is None:
        return ""
    unit = "difference of the two logits" if explanation.contrast else "logit"
    return (
        f"<p>All patches together: {sums.sum_contributions:+.3f}, bias: {sums.bias:+.3f}, {unit}: "
        f"{sums.logit:+.3f} "
        f'<span class="quiet">(left over by rounding: {sums.residual:.0e})</span></p>'
    )


def _drawn(explanation: Explanation, name: str, picture: Picture) -> str:
    caption = RENDERS[name].caption
    if name == "mask" and explanation.mask:
        caption += f" ({explanation.mask.threshold:.2g} of the largest number)"
    return _figure(picture, name, caption, "bits" if name == "mask" else "")


def _scale(heat: Heatmap, colormap: str) -> str:
    limit = float(np.abs(heat.values).max())
    ends = (
        (f"{-limit:.2g} against", "0", f"{limit:.2g} for")
        if heat.signed
        else ("0", f"{limit / 2:.2g}", f"{limit:.2g}")
    )
    unit = (
        "logits each patch adds"
        if heat.units == "logit"
        else "relative: 1 is the strongest place of this picture"
    )
    gradient = css_gradient(DIVERGING if heat.signed else COLOUR_MAPS[colormap].table)
    ticks = "".join(f"<span>{end}</span>" for end in ends)
    bar = (
        f'<div style="background:{gradient}" role="img" aria-label="colour bar from {ends[0]} to {ends[-1]}">'
        "</div>"
    )
    return (
        f'<div class="scale">{bar}<div class="ticks">{ticks}</div><div class="quiet">{unit}; overlays fade '
        "out towards 0</div></div>"
    )


def _fading(fading: Fading) -> str:
    """What the strength of the overlay says, where it is not full."""
    if not fading.reasons:
        return ""
    return (
        f'<p class="warning">The overlay is drawn at {100 * fading.strength:.0f} % of its strength: '
        f"{escape('; '.join(fading.reasons))}.</p>"
    )


def _check(check: Check) -> str:
    """The check in words."""
    kind = "" if check.passed else ' class="warning"'
    verdict = (
        "The map points at what the answer rests on."
        if check.passed
        else "The map does no better than chance here: do not trust it."
    )
    return (
        f"<p{kind}>Hiding what the map shows takes the score from {check.score:.2f} to "
        f"{check.score - check.drop:.2f}; hiding as much at random places, to "
        f"{check.score - check.random_drop:.2f}. {verdict}</p>"
    )


def _parts(explanation: Explanation) -> str:
    """The table of all parts, in the colours of the picture `parts`."""
    largest = max((abs(part.share) for part in explanation.parts), default=0.0) or 1.0
    drawn = "parts" in explanation.images
    rows = "".join(
        f"<tr><td>{_swatch(rank) if drawn else ''}{part.part}</td>"
        f"<td>{_image(part.overlay, f'part {part.part} on the photo') if part.overlay else ''}</td>"
        f'{_share(part.share, largest)}<td class="n">{_percent(part.area)}</td></tr>'
        for rank, part in enumerate(explanation.parts)
    )
    head = "".join(f"<th>{name}</th>" for name in ("part", "", "share", "", "area"))
    return f'<h3>Parts</h3><table><tr>{head}</tr>{rows}</table><p class="quiet">{PARTS_NOTE}</p>'


def _clusters(explanation: Explanation) -> str:
    clusters, specific = explanation.clusters, explanation.method.class_specific
    if specific:
        clusters = tuple(sorted(clusters, key=lambda c: -(c.share or 0)))
    largest = max((abs(c.share) for c in clusters if c.share is not None), default=0.0)
    effects = any(c.effect is not None for c in clusters)
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "cluster",
            "",
            *(("share", "") if largest else ()),
            "area",
            *(("effect",) if effects else ()),
        )
    )
    order = {c.cluster: rank for rank, c in enumerate(explanation.clusters)}
    rows = "".join(
        _cluster_row(c, largest, effects, order[c.cluster] if "segmentation" in explanation.images else None)
        for c in clusters
    )
    note = (SHARE_NOTE if specific else AGNOSTIC_NOTE) + (EFFECT_NOTE if effects else "")
    return (
        f'<h3>Clusters of stage {clusters[0].stage}</h3><table><tr>{head}</tr>{rows}</table><p class="quiet">'
        f"{note}</p>"
    )


def _cluster_row(cluster: Cluster, largest: float, effects: bool, rank: int | None) -> str:
    swatch = "" if rank is None else _swatch(rank)
    picture = _image(cluster.overlay, f"cluster {cluster.cluster} on the photo") if cluster.overlay else ""
    cells = [f"<td>{swatch}{cluster.cluster}</td><td>{picture}</td>"]
    if largest:
        cells.append(_share(cluster.share or 0.0, largest))
    cells.append(f'<td class="n">{_percent(cluster.area)}</td>')
    if effects:
        cells.append(
            f'<td class="n">{cluster.effect:+.4f}</td>' if cluster.effect is not None else "<td></td>"
        )
    return f"<tr>{''.join(cells)}</tr>"


def _swatch(rank: int) -> str:
    """The colour of a group in the picture that shows all of them."""
    if rank >= len(CLUSTERS):
        return ""
    return f'<span class="swatch" style="background:#{CLUSTERS[rank].tobytes().hex()}"></span>'


def _share(share: float, largest: float) -> str:
    """Two cells: a bar, and the number."""
    bar = _track(abs(share) / largest, "for" if share >= 0 else "against")
    return f'<td class="bar">{bar}</td><td class="n">{share:+.3f}</td>'


def _track(part: float, kind: str = "") -> str:
    return f'<div class="track"><i class="{kind}" style="width:{100 * min(max(part, 0), 1):.1f}%"></i></div>'


def _figure(picture: Picture, alt: str, caption: str, kind: str = "") -> str:
    return f"<figure>{_image(picture, alt, kind)}<figcaption>{escape(caption)}</figcaption></figure>"


def _image(picture: Picture, alt: str, kind: str = "") -> str:
    data = base64.b64encode(picture.data).decode()
    return (
        f'<img class="{kind}" width="{picture.width}" height="{picture.height}" alt="{escape(alt)}" '
        f'src="data:{picture.mime};base64,{data}">'
    )


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
