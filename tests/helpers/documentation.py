"""Code blocks of the pages of the documentation site."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+?) -->\n)?^(?P<indent> *)```(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    """Relative to docs/."""
    line: int
    language: str
    title: str
    """Of the file that the block is; empty for none."""
    text: str
    not_run: str
    """Why a Python block is not run, from a comment in front of it; empty if it is."""
    adjoins: bool
    """Whether it directly follows another block: text is then what that one prints."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command of a shell block, without comments; `a && b` are two."""
        for line in re.sub(r"\\\n\s*", "", self.text).splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                if words[:end]:
                    yield words[:end]
                words = words[end + 1 :]


def blocks(page: str = "**/*.md") -> list[Block]:
    """Return the blocks of the pages that match a pattern, in their order."""
    found = []
    for path in sorted(DOCS.glob(page)):
        text, end = path.read_text(encoding="utf-8"), -1
        for match in FENCE.finditer(text):
            language, _, attributes = match["info"].partition(" ")
            title = re.search(r'title="([^"]+)"', attributes)
            indented = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            found.append(
                Block(
                    page=path.relative_to(DOCS).as_posix(),
                    line=text.count("\n", 0, match.start()) + 1,
                    language=language,
                    title=title[1] if title else "",
                    text=indented,
                    not_run=match["reason"] or "",
                    adjoins=not text[max(end, 0) : match.start()].strip() and end >= 0,
                )
            )
            end = match.end()
    return found
