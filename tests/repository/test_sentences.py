"""Docstrings and comments keep to the words of CONTRIBUTING.md."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from conftest import CHECKOUT

BANNED = re.compile(
    r"\b(whoever|nobody|somebody|everybody|anybody|anew|mend(?:s|ed)?|(?:is|are) told|hears|heard|held"
    r" against|as it came)\b",
    re.IGNORECASE,
)
"""A component acts, never a person; and the field has a verb: fix, receive, compare, retry."""
ROOTS = ("examples", "jobs", "orchestrator", "policy", "sim_workers", "stress")
FILES = sorted(
    file.relative_to(CHECKOUT).as_posix() for root in ROOTS for file in (CHECKOUT / root).rglob("*.py")
)


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring, of attributes too, and of every comment."""
    source = file.read_text()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", [])
        for statement in body if isinstance(body, list) else []:
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value
    yield from (
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    )


def test_docstrings_and_comments_have_no_banned_word() -> None:
    assert [
        f"{file}:{line}: {match[0]}"
        for file in FILES
        for line, text in prose(CHECKOUT / file)
        for match in BANNED.finditer(text)
    ] == []
