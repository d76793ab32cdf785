"""Fingerprints of the code that trains, acts and scores: equal for files with the same meaning.

A file's meaning is its syntax tree, without comments, docstrings, layout and names of files. So editing a
comment or moving a file changes no fingerprint, whereas editing the sampler does.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from orchestrator.provenance import digest
from policy.entry_points import POLICIES, TASKS, Group, find
from sim_workers.checkout import CHECKOUT, Files, content_hash, file_hashes, sources
from sim_workers.envs.registry import is_plugin


@dataclass(frozen=True)
class Code:
    """Files of the checkout that the roots import, directly or indirectly, also inside functions; iterates
    over them.
    """

    roots: tuple[str, ...]
    """Files, included even if they are outside `within`."""
    within: tuple[str, ...]
    """Folders, with a final `/`, and files: other imports are not followed."""

    def __iter__(self) -> Iterator[str]:
        return iter(import_closure(self.roots, self.within))


SIMULATING_CODE = Code(("sim_workers/rollout/worker.py",), ("policy/", "sim_workers/"))
"""Code that plays an episode with any policy: simulator, rules, and queries of the policy through its
interface.
"""
SCORING_CODE = Code(
    (
        "sim_workers/rollout/worker.py",
        "sim_workers/rollout/ray_policy_client.py",
        "orchestrator/evaluation/policy_server.py",
        "policy/inference.py",
    ),
    ("policy/", "sim_workers/"),
)
"""Code that plays an episode with a checkpoint: in addition, the policy server's batches, networks, sampler
and loading of weights.
"""
ADAPTING_CODE = Code(("sim_workers/envs/from_gymnasium.py",), ("sim_workers/envs/from_gymnasium.py",))
"""Code that plug-ins build their environments with, and that no environment of this package uses."""
ACTION_ERROR_CODE = Code(
    (
        "orchestrator/evaluation/action_error_score.py",
        "sim_workers/rollout/ray_policy_client.py",
        "orchestrator/evaluation/policy_server.py",
        "policy/inference.py",
    ),
    ("policy/", "orchestrator/data/"),
)
"""Code that compares a checkpoint's actions with recorded ones: decoding of episodes and their walk, the
policy server's batches, networks, sampler; no simulator.
"""
TRAINING_CODE = Code(
    (
        "orchestrator/training/loop.py",
        "orchestrator/training/progress.py",
        "orchestrator/training/ray_train.py",
        "orchestrator/checkpoints/pretrained_weights.py",
    ),
    ("policy/", "orchestrator/data/"),
)
"""Code that turns stored episodes into a policy. Importers and exporters of episodes, simulators and servers
are not part of it: episodes count by content."""


def import_closure(roots: tuple[str, ...], within: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files that `roots` import, directly or indirectly, including the roots, sorted; within: as
    in `Code`.

    Computed names, `importlib.import_module(name)`, are not followed.
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
    """Return the files of the checkout that a file's import statements name: the modules and all their
    packages.
    """
    places, modules = _modules(root), set[str]()
    for statement in _read(sources(root)[file]).imports:
        module = statement.module_in(file)
        # a module of the package, or a name in it
        modules |= {module, *(f"{module}.{name}" for name, _ in statement.names)}
    packages = {
        ".".join(module.split(".")[:length])
        for module in modules
        for length in range(1, module.count(".") + 2)
    }
    return tuple(sorted(places[module] for module in packages & places.keys()))


@cache
def _modules(root: Path) -> dict[str, str]:
    """Return the files of the checkout by module name."""
    return {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in sources(root)
    }


@dataclass(frozen=True)
class Import:
    """`from MODULE import NAMES`, or `import MODULE as NAME` without names."""

    module: str
    level: int
    names: tuple[tuple[str, str | None], ...]
    """Imported names, each with its alias or None."""
    alias: str | None = None

    def module_in(self, file: str) -> str:
        """Return the absolute module name if `file` of the checkout imports it."""
        package = file.split("/")[:-1]
        above = package[: len(package) - self.level + 1] if self.level else []
        return ".".join([*above, *filter(None, [self.module])])


@dataclass(frozen=True)
class ModuleSource:
    """Imports and statements of a file."""

    imports: tuple[Import, ...]
    statements: str
    """Hash of everything but its imports."""


@cache
def _read(source: bytes) -> ModuleSource:
    tree, imports = ast.parse(source), list[Import]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += (Import(alias.name, 0, (), alias.asname) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.append(
                Import(
                    node.module or "",
                    node.level,
                    tuple(sorted(((name.name, name.asname) for name in node.names), key=str)),
                )
            )
    return ModuleSource(tuple(imports), _hash(_meaning(tree)))


def _meaning(node: Any) -> Any:
    """Return a syntax tree as JSON, without docstrings and imports; empty fields are left out, so that it is
    the same in each version of Python.
    """
    if isinstance(node, ast.AST):
        fields = {
            name: _meaning(value)
            for name, value in ast.iter_fields(node)
            if name not in ("kind", "type_comment", "type_ignores")
        }
        return [
            type(node).__name__,
            {name: value for name, value in fields.items() if value not in (None, [])},
        ]
    if isinstance(node, list):
        return [
            _meaning(item)
            for item in node
            if not (isinstance(item, ast.Import | ast.ImportFrom) or _is_text(item))
        ]
    return node if node is None or isinstance(node, bool | int | str) else [type(node).__name__, repr(node)]


def _is_text(statement: Any) -> bool:
    """Whether a statement is a string and nothing else: a docstring, of a module, class, function or
    attribute.
    """
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _hash(meaning: Any) -> str:
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]


EMPTY = _read(b"")


def _file_hash(file: str, inside: frozenset[str], root: Path) -> str:
    """Return the hash of a file's statements and imports, without names of files.

    A module of `inside` is represented by the hash of its own statements. Other modules of the checkout,
    whose code does not count, are represented by the imported names only.
    """
    known, places = sources(root), _modules(root)

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
            if f"{module}.{name}" in places:  # a module counts by its local name
                imports.append([module_hash(f"{module}.{name}"), alias or name])
            else:
                imports.append([module_hash(module), name, alias])
    return _hash([found.statements, sorted(imports, key=str)])


@lru_cache
def code_hashes(code: Code) -> dict[str, str]:
    """Return the hash of every file's meaning, by file, as of this process's first read. Files without
    statements are left out.
    """
    inside, known = frozenset(code), sources(CHECKOUT)
    return {
        file: _file_hash(file, inside, CHECKOUT) for file in sorted(inside) if _read(known[file]) != EMPTY
    }


@lru_cache
def code_fingerprint(code: Code) -> str:
    """Return the hash of the files' meanings, independent of their names and folders."""
    return fingerprint_of(code_hashes(code))


@dataclass(frozen=True)
class PackageCode:
    """Code of an installed package that offers a policy or a task, as this process's first read found it."""

    package: str
    """Name and version."""
    meanings: Mapping[str, str]
    """Hash of every file of the import package: of Python files the meaning, of models and textures the
    content.
    """
    contents: Files
    """Hash of every Python file's content, for comparison with what other processes import."""

    def key(self) -> dict[str, str]:
        """Return the part of a result's key."""
        return {"package": self.package, **self.meanings}


@lru_cache
def package_code(group: Group, name: str) -> PackageCode:
    """Return the code of the package that offers a policy or task; nothing of it is imported. Raises
    PluginError if there is none, or its module cannot be found.
    """
    plugin = find(group, name)
    meanings, contents = dict[str, str](), dict[str, str]()
    for file, path in plugin.files().items():
        data = path.read_bytes()
        meanings[file] = content_hash(data)
        if path.suffix == ".py":
            contents[file] = content_hash(data)
            with suppress(SyntaxError, ValueError):
                source = _read(data)
                meanings[file] = _hash([source.statements, sorted(map(str, source.imports))])
    return PackageCode(plugin.package, meanings, contents)


def learner_code(name: str) -> dict[str, str]:
    """Return the part `learner_code` of keys of a policy that a package offers: package, version, and the
    hash of every file. Empty for an empty name, a policy of no other package.

    Raises PluginError as `package_code`.
    """
    return package_code(POLICIES, name).key() if name else {}


def plugin_code(task: str) -> dict[str, str]:
    """Return the part of keys of scores on a plug-in's task: package, version, the hash of every file, and
    the code that adapts environments.

    Raises PluginError as `package_code`.
    """
    return {**package_code(TASKS, task).key(), **code_hashes(ADAPTING_CODE)}


def run_files(tasks: Iterable[str] = (), learners: Iterable[str] = ()) -> Files:
    """Return the hashes that the processes of a run compare their imports with: of the checkout, and of the
    packages that offer the plug-ins among `tasks`, and the policies `learners`; empty names are none.
    """
    packages = [package_code(TASKS, task) for task in tasks if is_plugin(task)]
    packages += [package_code(POLICIES, name) for name in learners if name]
    files = dict(file_hashes())
    for package in packages:
        files |= package.contents
    return files


def fingerprint_of(hashes: dict[str, str]) -> str:
    """Return the hash of `code_hashes`, without the names of files."""
    return digest(sorted(hashes.values()))
