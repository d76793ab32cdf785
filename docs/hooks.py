"""Pages that mkdocs makes while it builds the site: one per command, and one per file of the repository that
a page links to, so that the site is whole without a network.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).resolve().parent.parent
DOCS, COMMANDS, REPOSITORY = "docs/", "commands/", "repository/"
FENCED = re.compile(r"^( *)(```+).*?^\1\2\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".sh": "sh"}
PICTURES = (".png", ".jpg", ".svg")


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """List commands and design notes in the navigation, where the configuration has empty lists for them."""
    from orchestrator.cli.docs import command_pages

    notes = sorted((CHECKOUT / DOCS / "design").glob("*.md"), key=lambda note: (note.stem != "README", note))
    filled: dict[str, list[Any]] = {
        "Commands": [
            {page.name if page.name != "index" else "All commands": f"{COMMANDS}{page.name}.md"}
            for page in command_pages()
        ],
        "Design": [f"design/{note.name}" for note in notes],
    }
    for section in config.nav or []:
        for name in filled.keys() & (section if isinstance(section, dict) else {}):
            section[name] = filled[name]
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages of commands, and those of the files that pages link to."""
    from mkdocs.structure.files import File

    from orchestrator.cli.docs import command_pages

    for command in command_pages():
        files.append(File.generated(config, f"{COMMANDS}{command.name}.md", content=command.markdown))
    written = [
        (f"{DOCS}{file.src_uri}", Path(file.abs_src_path).read_text(encoding="utf-8"))
        for file in files.documentation_pages()
        if file.abs_src_path and file.generated_by is None
    ]
    for path in sorted(linked(written)):
        if path.endswith(PICTURES):
            picture = (CHECKOUT / path).read_bytes()
            files.append(File.generated(config, REPOSITORY + path, content=picture))
        else:
            files.append(File.generated(config, site_path(path), content=content(path)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Point links to files of the repository to their pages."""
    return rewritten(markdown, page.file.src_uri)


def linked(pages: list[tuple[str, str]]) -> set[str]:
    """Return the files outside of docs/ that pages link to, and those that these link to. Paths are relative
    to the checkout.

    pages: path and Markdown of each page.
    """
    found: set[str] = set()
    while pages:
        path, markdown = pages.pop()
        for target in _targets(markdown, path):
            if not target.startswith(DOCS) and target not in found:
                found.add(target)
                if target.endswith(".md"):
                    pages.append((target, content(target)))
    return found


def rewritten(markdown: str, src_uri: str) -> str:
    """Return the Markdown of a page of the site with its links as the site needs them."""
    here = repository_path(src_uri)

    def pointed(link: re.Match[str]) -> str:
        target = _resolved(link["path"], here)
        if target is None:
            return link[0]
        return posixpath.relpath(site_path(target), posixpath.dirname(src_uri)) + (link["anchor"] or "")

    return "".join(part if fenced else LINK.sub(pointed, part) for part, fenced in _parts(markdown))


def site_path(path: str) -> str:
    """Return where a file of the checkout is on the site: `src_uri` of its page or picture."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return REPOSITORY + (path if path.endswith((".md", *PICTURES)) else f"{path}.md")


def repository_path(src_uri: str) -> str:
    """Return the file of the checkout that a page shows; the reverse of `site_path` for Markdown."""
    return src_uri.removeprefix(REPOSITORY) if src_uri.startswith(REPOSITORY) else DOCS + src_uri


def content(path: str) -> str:
    """Return the Markdown of the page that shows a file or a folder of the checkout."""
    file = CHECKOUT / path
    if path.endswith(".md"):
        return file.read_text(encoding="utf-8")
    head = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n"
    if file.is_dir():
        names = sorted(one.name + "/" * one.is_dir() for one in file.iterdir() if one.name[0] not in "._")
        return head + "\n".join(f"- `{name}`" for name in names) + "\n"
    code = file.read_text(encoding="utf-8").rstrip("\n")
    return f"{head}````{LANGUAGES.get(file.suffix, 'text')}\n{code}\n````\n"


def _targets(markdown: str, path: str) -> Iterator[str]:
    for part, fenced in _parts(markdown):
        for link in () if fenced else LINK.finditer(part):
            if target := _resolved(link["path"], path):
                yield target


def _resolved(link: str, path: str) -> str | None:
    """Return the file of the checkout that a link in the file `path` leads to; None for other links, and for
    those that lead nowhere, which mkdocs reports.
    """
    if "://" in link or link.startswith("mailto:") or path.startswith(DOCS + COMMANDS):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    if (CHECKOUT / target).is_dir() and (CHECKOUT / target / "README.md").exists():
        target += "/README.md"
    return target if not target.startswith("..") and (CHECKOUT / target).exists() else None


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """Split Markdown into text and fenced code: (part, whether it is code)."""
    end = 0
    for block in FENCED.finditer(markdown):
        yield markdown[end : block.start()], False
        yield block[0], True
        end = block.end()
    yield markdown[end:], False
