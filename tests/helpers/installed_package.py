"""Temporary packages, as pip would install them, for tests of what packages offer by entry points."""

import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.code_fingerprint import package_code
from policy import entry_points
from sim_workers.envs import plugins


def install(
    site: Path,
    name: str,
    files: Mapping[str, str],
    offers: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
) -> None:
    """Write a package into a folder `site`, in place of the version that was there.

    files: texts by path. offers: per group of entry points, values (`module:attribute`) by name.
    """
    for file, text in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
    info = site / f"{name}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, values in offers.items()
        for line in (f"[{group}]", *(f"{offered} = {value}" for offered, value in values.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    forget()


def install_own_tasks(site: Path) -> None:
    """Install the example package of this checkout into a folder `site`, as far as its metadata are
    concerned.
    """
    pyproject = Path(__file__).parents[2] / "examples" / "own_tasks" / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text())["project"]
    install(site, project["name"], {}, project["entry-points"], project["version"])


def forget() -> None:
    """Have this process read the installed packages and their files again, as a new process does."""
    entry_points.forget()
    plugins.load.cache_clear()
    package_code.cache_clear()


def path_with(site: Path) -> str:
    """Return a PYTHONPATH on which the packages in a folder are found, for processes that a test starts."""
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))


@contextmanager
def on_path(site: Path) -> Iterator[Path]:
    """Have the packages in a folder installed: in this process, and in those that it starts."""
    before, path = os.environ.get("PYTHONPATH"), [*sys.path]
    modules = {*sys.modules}
    os.environ["PYTHONPATH"] = path_with(site)
    sys.path.insert(0, str(site))
    forget()
    try:
        yield site
    finally:
        sys.path[:] = path
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        for name in {*sys.modules} - modules:
            if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).is_relative_to(site):
                del sys.modules[name]
        forget()
