"""Holds the documents to what CONTRIBUTING says of them: lines of at most 110 columns, sentences of at most
25 words, links that lead somewhere. Tables, code and figures made by benchmarks are left out.

    python .ci/prose.py [FILE.md ...]      default: every .md file of the repository
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COLUMNS, WORDS = 110, 25
ROOT = Path(__file__).parent.parent
LEFT_OUT = re.compile(r"```.*?```|<!-- (figure|picture).*?<!-- /\1.*?-->", re.S)
MADE = "service/models/"  # what the exporter writes
WORD = re.compile(r"[A-Za-z][\w'’-]*")


def main(files: list[str]) -> int:
    names = files or subprocess.run(
        ["git", "ls-files", "*.md", f":!{MADE}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    problems = [problem for name in names if name for problem in of(ROOT / name)]
    print("\n".join(problems))
    return bool(problems)


def of(path: Path) -> Iterator[str]:
    """What is wrong with one document, with its line."""
    name, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
    blank = LEFT_OUT.sub(lambda found: "\n" * found[0].count("\n"), text)
    lines = [("" if line.lstrip().startswith("|") else line) for line in blank.split("\n")]
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS and " " in line[:COLUMNS].strip():
            yield f"{name}:{number}: {len(line)} columns, at most {COLUMNS}"
    for number, sentence in sentences(lines):
        if (words := len(WORD.findall(sentence))) > WORDS:
            yield f"{name}:{number}: {words} words, at most {WORDS}: {sentence[:80]} …"
    for number, line in enumerate(text.split("\n"), 1):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            file, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target) or not (file or anchor):
                continue
            there = (path.parent / file) if file else path
            if not there.exists():
                yield f"{name}:{number}: the link {target} leads nowhere"
            elif anchor and there.suffix == ".md" and anchor not in anchors(there):
                yield f"{name}:{number}: {file or name} has no heading #{anchor}"


def sentences(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(line where it begins, sentence). A blank line, a heading and an item of a list begin a new one."""
    start, words = 1, ""
    for number, line in enumerate([*lines, ""], 1):
        text = line.strip()
        begins = not text or re.match(r"([-*+]|\d+\.|#+|>)\s", text)
        if begins and words:
            yield from ((start, sentence) for sentence in split(words))
            words = ""
        if re.match(r"#+\s", text) or line.startswith("    "):
            continue  # a heading is no sentence, and what stands so far to the right is code
        if text:
            start = start if words else number
            words = f"{words} {text}".strip()


def split(paragraph: str) -> list[str]:
    """The sentences of a paragraph. What code marks and links show counts as one word each."""
    plain = re.sub(r"`[^`]*`", "x", re.sub(r"\]\([^)]*\)", "]", paragraph))
    return re.split(r"(?<=[.!?:;])[\"”)*]*\s+", plain)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+\s+(.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
