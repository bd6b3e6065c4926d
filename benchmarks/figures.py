"""Rewrites every number that the docs quote from benchmarks/results/*.json, the settings table, and the
README's picture: `make figures`.

A document holds `<!-- figure:NAME column,column -->` ... `<!-- /figure -->`; what stands between is replaced
by a Markdown table of that result's rows, with the command, machine and date under it. Nothing is measured
here but the picture; `make bench` makes the results.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
from card import RESULTS, cell
from PIL import Image

from service.options import ExplainOptions
from service.predictor import Predictor
from service.settings import Settings

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"(<!-- figure:(\S+)(?: ([^>]*?))? -->\n).*?(<!-- /figure -->)", re.S)


def render(name: str, columns: str | None) -> str:
    """One result as Markdown."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return f"*not run: no result `{name}`*\n"
    result = json.loads(path.read_text())
    rows = result["rows"]
    keys = [c.strip() for c in columns.split(",")] if columns else list(rows[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(cell(row.get(key)) for key in keys) + " |" for row in rows]
    card = result["machine"]
    lines.append(
        f"\n`{result['command']}`, {result['date']}, {card['processor']}, {card['cores']} cores "
        f"({', '.join(card['instructions'])})."
    )
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Every PACA_* variable as a Markdown table, from the one class that reads them."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = (
            "the embedded repository" if name == "models" else field.get_default(call_default_factory=True)
        )
        shown = (
            ""
            if default is None or default == []
            else f"`{default}`"
            if default != "the embedded repository"
            else default
        )
        lines.append(f"| `PACA_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def documents() -> list[Path]:
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "service" / "models").rglob("README.md")),
    ]


async def picture() -> tuple[bytes, str]:
    """The README's picture: photo, overlay and the three strongest clusters side by side; and what the model
    answered."""
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("china.jpg")
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    predictor = Predictor.open()
    answer = await predictor.explain(file.getvalue(), ExplainOptions(size=420, format="png", top_clusters=3))
    await predictor.close()
    (explanation,) = answer.explanations
    overlay = explanation.images["overlay"]
    panels = [
        Image.fromarray(photo).resize((overlay.width, overlay.height), Image.Resampling.BICUBIC),
        Image.open(io.BytesIO(overlay.data)),
    ]
    panels += [Image.open(io.BytesIO(c.overlay.data)) for c in explanation.clusters if c.overlay]
    small = [p.resize((overlay.width * 2 // 3, overlay.height * 2 // 3)) for p in panels[2:]]
    width = 2 * overlay.width + 8
    sheet = Image.new("RGB", (width, overlay.height + small[0].height + 8), "white")
    sheet.paste(panels[0], (0, 0))
    sheet.paste(panels[1], (overlay.width + 8, 0))
    gap = (width - 3 * small[0].width) // 2
    for i, panel in enumerate(small):
        sheet.paste(panel, (i * (panel.width + gap), overlay.height + 8))
    out = io.BytesIO()
    sheet.save(out, "WEBP", quality=82)
    best = ", ".join(f"{p.label} {p.score:.2f}" for p in answer.predictions[:3])
    caption = (
        "The embedded model on a photo of a pagoda (china.jpg of scikit-learn, by danielbuechele, CC BY "
        f"2.0): **{best}**. Above right: where the evidence for "
        f"“{explanation.target.label if explanation.target else ''}” lies; below: its three strongest "
        "clusters."
    )
    return out.getvalue(), caption


def main() -> None:
    image, caption = asyncio.run(picture())
    (ROOT / "docs" / "images" / "overlay.webp").write_bytes(image)
    readme = ROOT / "README.md"
    text = re.sub(
        r"(<!-- picture-caption -->).*?(<!-- /picture-caption -->)",
        lambda m: f"{m[1]}\n{caption}\n{m[2]}",
        readme.read_text(),
        flags=re.S,
    )
    readme.write_text(text)
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = MARKER.sub(lambda m: m[1] + render(m[2], m[3]) + m[4], before)
        after = re.sub(
            r"(<!-- settings -->\n).*?(<!-- /settings -->)",
            lambda m: m[1] + settings() + m[2],
            after,
            flags=re.S,
        )
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"rewrote {path.relative_to(ROOT)}", file=sys.stderr)
    assert np.asarray(Image.open(io.BytesIO(image))).std() > 10


if __name__ == "__main__":
    main()
