"""Does this machine have the versions that the checkout pins? Asked on the cluster's head before a job begins; needs nothing but Python.

python -m orchestrator.cluster.version_check
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.provenance import CHECKOUT

PYTHONS = ((3, 11), (3, 12))
"""Those of pyproject.toml."""
MEND = "run the cluster on an image built from this checkout (deploy/), or submit with --pip, which has Ray install them (slow)"


def pins(checkout: Path = CHECKOUT) -> dict[str, str]:
    """Package -> the exact version that pyproject.toml asks for."""
    found = {}
    for line in dependencies(checkout):
        name, pinned, wanted = line.partition("==")
        if pinned:
            found[name.partition("[")[0].strip()] = wanted.strip()
    return found


def dependencies(checkout: Path = CHECKOUT) -> list[str]:
    """What pyproject.toml says the project needs to run, as pip reads it."""
    told: list[str] = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["dependencies"]
    return told


def to_install(checkout: Path = CHECKOUT) -> list[str]:
    """For pip on the cluster: every package that is needed, at the version constraints.txt has; Ray itself is the cluster's."""
    exact = dict(re.findall(r"^([^#=\s]+)==(\S+)$", (checkout / "constraints.txt").read_text(), re.M))
    names = [re.split(r"[\[<>=;\s]", line, maxsplit=1)[0] for line in dependencies(checkout)]
    known = {_plain(name): wanted for name, wanted in exact.items()}
    return [f"{name}=={known[_plain(name)]}" for name in names if name != "ray"]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def differing(wanted: dict[str, str]) -> list[str]:
    """Packages that are missing here or another version, and Python where it does not fit."""
    differ = [] if sys.version_info[:2] in PYTHONS else [f"Python {sys.version_info[0]}.{sys.version_info[1]} instead of 3.11 or 3.12"]
    for name, exact in wanted.items():
        try:
            found = version(name).partition("+")[0]
        except PackageNotFoundError:
            found = "missing"
        if found != exact:
            differ.append(f"{name} {found} instead of {exact}")
    return differ


def main() -> None:
    """Exit code 2 with one sentence if something differs."""
    if differ := differing(pins()):
        print(f"nothing was begun: the cluster has {', '.join(differ)}; {MEND}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
