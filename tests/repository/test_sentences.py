"""Docstrings, comments and names of tests keep to the words of CONTRIBUTING.md."""

import ast
import functools
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from conftest import CHECKOUT

BANNED = re.compile(
    r"\b(whoever|nobody|somebody|everybody|anybody|anew|mend(?:s|ed)?|(?:is|are) told|hears|heard|held"
    r" against|as it came)\b",
    re.IGNORECASE,
)
"""A component acts, never a person; and the field has a verb: fix, receive, compare, retry."""
BANNED_IN_TESTS = re.compile(
    BANNED.pattern + r"|\b(told|hear|tells? of|away|twins?|beside|pretend(?:s|ed)?)\b", re.IGNORECASE
)
"""Words of docstrings, comments and names in tests/, where underscores separate the words of a name."""
LONGEST_NAME = 75
"""Characters of the longest name of a test function."""
ROOTS = ("examples", "jobs", "orchestrator", "policy", "sim_workers", "stress")
FILES = sorted(
    file.relative_to(CHECKOUT).as_posix() for root in ROOTS for file in (CHECKOUT / root).rglob("*.py")
)
TESTS = sorted(file.relative_to(CHECKOUT).as_posix() for file in (CHECKOUT / "tests").rglob("*.py"))


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


@functools.cache
def names_of_tests(file: Path) -> tuple[tuple[int, str], ...]:
    """Return (line, name) of every test function, methods of classes too."""
    return tuple(
        (node.lineno, node.name)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def banned(pattern: re.Pattern[str], file: str, texts: Iterator[tuple[int, str]]) -> list[str]:
    """List the matches in the (line, text) of a file, each as `file:line: word`."""
    return [f"{file}:{line}: {match[0]}" for line, text in texts for match in pattern.finditer(text)]


def test_docstrings_and_comments_have_no_banned_word() -> None:
    assert [found for file in FILES for found in banned(BANNED, file, prose(CHECKOUT / file))] == []


def test_docstrings_and_comments_of_tests_have_no_banned_word() -> None:
    assert [found for file in TESTS for found in banned(BANNED_IN_TESTS, file, prose(CHECKOUT / file))] == []


def test_names_of_tests_have_no_banned_word() -> None:
    assert [
        found
        for file in TESTS
        for found in banned(
            BANNED_IN_TESTS,
            file,
            ((line, name.replace("_", " ")) for line, name in names_of_tests(CHECKOUT / file)),
        )
    ] == []


def test_names_of_tests_are_at_most_75_characters() -> None:
    assert [
        f"{file}:{line}: {name}"
        for file in TESTS
        for line, name in names_of_tests(CHECKOUT / file)
        if len(name) > LONGEST_NAME
    ] == []


def test_names_of_tests_are_distinct_within_a_file() -> None:
    """A second function of one name would replace the first, which then never runs."""
    assert [
        f"{file}: {name}"
        for file in TESTS
        for name, count in Counter(name for _, name in names_of_tests(CHECKOUT / file)).items()
        if count > 1
    ] == []
