"""Collections of scripts (bench/, experiments/), their results, one JSON file each, and the page that is
rendered from them.

results/NAME.json    output of a run, with date, machine and versions
notes/NAME.md        optional, written by hand: context of the figures
README.md            `Collection.render()` of both
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

import click

from sim_workers.envs.render_check import processor_name

PACKAGES = ("ray", "torch", "diffusers", "robosuite", "mujoco")
NOT_HERE = 69
"""Exit code of a script that needs what this machine lacks, such as a GPU (EX_UNAVAILABLE of sysexits.h)."""


@dataclass(frozen=True)
class Result:
    """Output of one run, and where it ran."""

    date: str
    """ISO 8601."""
    machine: str
    """Processor, cores, GPU."""
    versions: str
    """Versions of Python and of PACKAGES."""
    quick: bool
    table: list[str]
    """Lines."""
    answer: dict[str, object]
    """The last line, parsed."""

    @classmethod
    def of(cls, printed: str, quick: bool) -> "Result":
        """Return the result of a run that ended here and now. Raises ValueError if the last line is no JSON
        object.
        """
        lines = printed.strip("\n").splitlines()
        # Ray's raylet prints notices to the driver's output between the script's own lines
        *table, last = [line for line in lines if "(raylet)" not in line]
        answer = json.loads(last)
        if not isinstance(answer, dict):
            raise ValueError(f"the last line is no JSON object: {last}")
        return cls(date.today().isoformat(), machine(), versions(), quick, table, answer)

    @classmethod
    def load(cls, path: Path) -> "Result":
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def machine() -> str:
    """Return the processor, cores and GPU of this machine."""
    question = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
    # in a process of its own, so that this one holds no memory of the GPU
    card = subprocess.run(
        [sys.executable, "-c", question], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    return f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, {card}"


def versions() -> str:
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)


@dataclass(frozen=True)
class Collection:
    """Scripts of one package with an option `--quick`, and their stored results."""

    folder: Path
    """Folder of the package, whose name is the package's."""
    head: str
    """Beginning of the page."""

    @property
    def page(self) -> Path:
        return self.folder / "README.md"

    def names(self) -> list[str]:
        """Return the names of the scripts."""
        return sorted(path.stem for path in self.folder.glob("[!_]*.py") if _is_script(path))

    def purpose(self, name: str) -> str:
        """Return the first paragraph of a script's docstring, without importing it."""
        text = ast.get_docstring(ast.parse((self.folder / f"{name}.py").read_text())) or ""
        return " ".join(text.partition("\n\n")[0].split())

    def stored(self) -> list[str]:
        """Return the names of the scripts with a stored result."""
        return sorted(path.stem for path in (self.folder / "results").glob("*.json"))

    def load(self, name: str) -> Result:
        return Result.load(self.folder / "results" / f"{name}.json")

    def save(self, name: str, result: Result) -> None:
        """Store a result and render the page again."""
        result.save(self.folder / "results" / f"{name}.json")
        self.page.write_text(self.render())

    def render(self) -> str:
        """Return the text of the page."""
        return self.head + "".join(section for name in self.stored() for section in self._section(name))

    def _section(self, name: str) -> Iterator[str]:
        result = self.load(name)
        yield f"\n## {name}\n\n{self.purpose(name)}\n\n"
        notes = self.folder / "notes" / f"{name}.md"
        if notes.exists():
            yield notes.read_text().strip() + "\n\n"
        short = "; short run (`--quick`)" if result.quick else ""
        yield f"{result.date}; {result.machine}; {result.versions}{short}.\n\n"
        yield "```\n" + "\n".join([*result.table, json.dumps(result.answer)]) + "\n```\n"

    def command(self) -> click.Command:
        """Make the command that runs scripts, stores their results and renders the page."""

        @click.command()
        @click.argument("names", nargs=-1, metavar="[NAME]...")
        @click.option("--quick", "short", is_flag=True, help="Make short runs and store nothing.")
        @click.option("--save", is_flag=True, help="Store the results of short runs as well.")
        @click.option("--page", is_flag=True, help="Run nothing: render the page from stored results.")
        def main(names: tuple[str, ...], short: bool, save: bool, page: bool) -> None:
            """Run the scripts NAME, by default all that this machine can run. Stops at the first that fails;
            earlier results stay stored.
            """
            if unknown := set(names) - set(self.names()):
                raise click.BadParameter(
                    f"there is no {', '.join(sorted(unknown))}; there are {', '.join(self.names())}"
                )
            for name in () if page else names or self.names():
                command = [sys.executable, "-m", f"{self.folder.name}.{name}", *["--quick"] * short]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                click.echo(done.stdout, nl=False)
                if done.returncode == NOT_HERE and not names:
                    continue  # the script has said what is missing
                if done.returncode:
                    sys.exit(done.returncode)
                if save or not short:
                    self.save(name, Result.of(done.stdout, short))
            if page:
                self.page.write_text(self.render())

        return main


def _is_script(path: Path) -> bool:
    """Return whether the module has a command `main` with an option `--quick`."""

    def is_quick(decorator: ast.expr) -> bool:
        return isinstance(decorator, ast.Call) and (
            ast.unparse(decorator.func) == "harness.command"
            or any(isinstance(value, ast.Constant) and value.value == "--quick" for value in decorator.args)
        )

    functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    return any(
        is_quick(decorator)
        for function in functions
        if function.name == "main"
        for decorator in function.decorator_list
    )


def sections(page: str) -> dict[str, dict[str, object]]:
    """Return the JSON objects that a page shows, by script."""
    answers: dict[str, dict[str, object]] = {}
    for text in page.split("\n## ")[1:]:
        answers[text.partition("\n")[0]] = json.loads(
            text.rstrip().removesuffix("```").rstrip().splitlines()[-1]
        )
    return answers
