"""Fingerprints of the code that trains, acts and scores: equal for files that mean the same.

A file counts by its syntax tree, without comments, docstrings, layout and names of files. So editing a comment or moving a file leaves every
fingerprint as it was, and editing the sampler does not.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from orchestrator.provenance import digest
from sim_workers.checkout import CHECKOUT, sources


@dataclass(frozen=True)
class Code:
    """The files of the checkout that some roots import, directly or through others, also inside functions; iterates over them."""

    roots: tuple[str, ...]
    """Files; they are part of it wherever they lie."""
    within: tuple[str, ...]
    """Folders, with a final `/`, and files: imports that lead elsewhere are not followed."""

    def __iter__(self) -> Iterator[str]:
        return iter(import_closure(self.roots, self.within))


SIMULATING_CODE = Code(("sim_workers/rollout/worker.py",), ("policy/", "sim_workers/"))
"""What plays an episode with any policy: the simulator, the rules, and how a policy is asked. Policies know of it only their interface."""
SCORING_CODE = Code(
    ("sim_workers/rollout/worker.py", "sim_workers/rollout/ray_policy_client.py", "orchestrator/evaluation/policy_server.py", "policy/inference.py"),
    ("policy/", "sim_workers/"),
)
"""What plays an episode with a checkpoint: besides, the policy server's batches, the networks, the sampler, and what loads weights."""
TRAINING_CODE = Code(
    ("orchestrator/training/loop.py", "orchestrator/training/ray_train.py", "orchestrator/checkpoints/pretrained_weights.py"),
    ("policy/", "orchestrator/data/"),
)
"""What turns stored episodes into a policy. Importers and exporters of episodes, simulators and servers are no part of it: episodes count by
content."""


def import_closure(roots: tuple[str, ...], within: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files that `roots` lead to by import statements, the roots among them, sorted; within: as in `Code`.

    Names that are computed, `importlib.import_module(name)`, lead nowhere.
    """
    return _closure(roots, within, CHECKOUT)


@lru_cache
def _closure(roots: tuple[str, ...], within: tuple[str, ...], root: Path) -> tuple[str, ...]:
    found, todo = set[str](), [*roots]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += (other for other in _imported(file, root) if other.startswith(within))
    return tuple(sorted(found))


@cache
def _imported(file: str, root: Path) -> tuple[str, ...]:
    """Files of the checkout that a file's import statements name: the modules, and every package that they lie in."""
    known, modules = sources(root), set[str]()
    for statement in _read(known[file]).imports:
        module = statement.module_in(file)
        modules |= {module, *(f"{module}.{name}" for name, _ in statement.names)}  # a module of the package, or a name in it
    parts = {tuple(module.split(".")[:length]) for module in modules for length in range(1, module.count(".") + 2)}
    files = {name for part in parts for name in ("/".join(part) + ".py", "/".join((*part, "__init__.py")))}
    return tuple(sorted(files & known.keys()))


@dataclass(frozen=True)
class Import:
    """`from MODULE import NAMES`, or `import MODULE as NAME` without names."""

    module: str
    level: int
    names: tuple[tuple[str, str | None], ...]
    """Each name, and what it is called here if that is another."""
    alias: str | None = None

    def module_in(self, file: str) -> str:
        """The module, where a file of the checkout imports it."""
        package = file.split("/")[:-1]
        above = package[: len(package) - self.level + 1] if self.level else []
        return ".".join([*above, *filter(None, [self.module])])


@dataclass(frozen=True)
class Source:
    """What a file says."""

    imports: tuple[Import, ...]
    statements: str
    """Hash of everything but its imports."""


@cache
def _read(source: bytes) -> Source:
    tree, imports = ast.parse(source), list[Import]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += (Import(alias.name, 0, (), alias.asname) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.append(Import(node.module or "", node.level, tuple(sorted(((name.name, name.asname) for name in node.names), key=str))))
    return Source(tuple(imports), _hash(_meaning(tree)))


def _meaning(node: Any) -> Any:
    """Return a syntax tree as JSON, without docstrings and imports; the same in each version of Python, so what is empty is left out."""
    if isinstance(node, ast.AST):
        fields = {name: _meaning(value) for name, value in ast.iter_fields(node) if name not in ("kind", "type_comment", "type_ignores")}
        return [type(node).__name__, {name: value for name, value in fields.items() if value not in (None, [])}]
    if isinstance(node, list):
        return [_meaning(item) for item in node if not (isinstance(item, ast.Import | ast.ImportFrom) or _is_text(item))]
    return node if node is None or isinstance(node, bool | int | str) else [type(node).__name__, repr(node)]


def _is_text(statement: Any) -> bool:
    """Whether a statement is a string and nothing else: a docstring, of a module, class, function or attribute."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def _hash(meaning: Any) -> str:
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]


EMPTY = _read(b"")


def _file_hash(file: str, inside: frozenset[str], root: Path) -> str:
    """The hash of a file's statements and of what it imports, without names of files.

    What stands for a module of `inside` is the hash of its own statements. Of other modules of the checkout, whose code does not count, only the
    imported names do.
    """
    known = sources(root)
    places = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in known}

    def module_hash(module: str) -> str:
        return _read(known[places[module]]).statements if places.get(module) in inside else ""

    imports = list[Any]()
    for statement in (found := _read(known[file])).imports:
        module = statement.module_in(file)
        if module not in places:
            imports.append([module, statement.alias, statement.names])
            continue
        if not statement.names:
            imports.append([module_hash(module), statement.alias])
        for name, alias in statement.names:
            if f"{module}.{name}" in places:  # a module counts by what it is called here
                imports.append([module_hash(f"{module}.{name}"), alias or name])
            else:
                imports.append([module_hash(module), name, alias])
    return _hash([found.statements, sorted(imports, key=str)])


@lru_cache
def code_hashes(code: Code) -> dict[str, str]:
    """Return the hash of what every file of `code` means, by file, as it was when this process first asked. Files without statements are left out."""
    inside, known = frozenset(code), sources(CHECKOUT)
    return {file: _file_hash(file, inside, CHECKOUT) for file in sorted(inside) if _read(known[file]) != EMPTY}


@lru_cache
def code_fingerprint(code: Code) -> str:
    """Hash of what the files of `code` mean, however they are called and wherever they lie."""
    return fingerprint_of(code_hashes(code))


def fingerprint_of(hashes: dict[str, str]) -> str:
    """Hash of `code_hashes`, without the names of files."""
    return digest(sorted(hashes.values()))
