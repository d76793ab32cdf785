"""Results of the benches, one JSON file each, and the page that is rendered from them.

bench/results/NAME.json    what a run printed, when and where
bench/notes/NAME.md        optional, written by hand: what the figures do not say
bench/README.md            `render()` of both
"""

import ast
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from sim_workers.envs.render_check import processor_name

FOLDER = Path(__file__).parent
PAGE = FOLDER / "README.md"
HEAD = """# Benches

One script per claim about speed. Each prints a table and, last, one line of JSON; `--quick` makes a short
run. `python -m bench` runs all of them, `python -m bench NAME ...` those named; results are stored in
`bench/results/`, notes in `bench/notes/`, and this page is rendered from both.
Read the ratios: both sides of a ratio are measured within one run.
"""
PACKAGES = ("ray", "torch", "diffusers", "robosuite", "mujoco")


def benches() -> list[str]:
    """Names of the modules of this folder that are benches: their command has an option `--quick`."""
    return sorted(
        path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_") and _is_bench(path)
    )


def _is_bench(path: Path) -> bool:
    def is_quick(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and any(
            isinstance(argument, ast.Constant) and argument.value == "--quick" for argument in node.args
        )

    functions = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    ]
    return any(is_quick(decorator) for function in functions for decorator in function.decorator_list)


def purpose(name: str) -> str:
    """First line of a bench's docstring, without importing it."""
    return (ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or "").partition("\n")[0]


@dataclass(frozen=True)
class Result:
    """What one run of a bench printed, and where it ran."""

    date: str
    """ISO 8601."""
    machine: str
    """Processor, cores, GPU."""
    versions: str
    """Of Python and the packages whose speed is measured."""
    quick: bool
    table: list[str]
    """Lines."""
    answer: dict[str, object]
    """The last line, parsed."""

    @classmethod
    def of(cls, printed: str, quick: bool) -> "Result":
        """Result of a run that ended here and now. ValueError if the last line is no JSON object."""
        *table, last = printed.strip("\n").splitlines()
        answer = json.loads(last)
        if not isinstance(answer, dict):
            raise ValueError(f"the last line is no JSON object: {last}")
        return cls(date.today().isoformat(), machine(), versions(), quick, table, answer)

    @classmethod
    def load(cls, name: str) -> "Result":
        return cls(**json.loads((FOLDER / "results" / f"{name}.json").read_text()))

    def save(self, name: str) -> None:
        (FOLDER / "results" / f"{name}.json").write_text(
            json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        )


def machine() -> str:
    """Processor, cores and GPU of this machine."""
    question = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
    # In a process of its own: this one shall hold no memory of the GPU.
    card = subprocess.run(
        [sys.executable, "-c", question], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    return f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, {card}"


def versions() -> str:
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def render() -> str:
    """The text of bench/README.md."""
    return HEAD + "".join(section for name in stored() for section in _section(name, Result.load(name)))


def stored() -> list[str]:
    """Names of the benches with a stored result."""
    return sorted(path.stem for path in (FOLDER / "results").glob("*.json"))


def _section(name: str, result: Result) -> Iterator[str]:
    yield f"\n## {name}\n\n{purpose(name)}\n\n"
    notes = FOLDER / "notes" / f"{name}.md"
    if notes.exists():
        yield notes.read_text().strip() + "\n\n"
    yield (
        f"{result.date}; {result.machine};"
        f" {result.versions}{'; short run (`--quick`)' if result.quick else ''}.\n\n"
    )
    yield "```\n" + "\n".join([*result.table, json.dumps(result.answer)]) + "\n```\n"


def sections(page: str) -> dict[str, dict[str, object]]:
    """The JSON objects that a page shows, by bench."""
    answers: dict[str, dict[str, object]] = {}
    for text in page.split("\n## ")[1:]:
        answers[text.partition("\n")[0]] = json.loads(
            text.rstrip().removesuffix("```").rstrip().splitlines()[-1]
        )
    return answers
