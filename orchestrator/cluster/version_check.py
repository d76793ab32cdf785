"""Check that this machine has the versions that the checkout pins, run on the cluster's head before a job
starts; needs only Python.

python -m orchestrator.cluster.version_check
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

from orchestrator.provenance import CHECKOUT

PYTHONS = ((3, 11), (3, 12))
"""Python versions that pyproject.toml admits."""
MEND = (
    "run the cluster on an image built from this checkout (deploy/), or submit with --pip, which has Ray"
    " install them (slow)"
)


def pins() -> dict[str, str]:
    """Return the exact versions that pyproject.toml pins, by package."""
    found = {}
    for line in dependencies():
        name, pinned, wanted = line.partition("==")
        if pinned:
            found[name.partition("[")[0].strip()] = wanted.strip()
    return found


def dependencies() -> list[str]:
    """Return the project's dependencies in pyproject.toml, as pip requirements."""
    told: list[str] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    return told


def to_install() -> list[str]:
    """Return the requirements for pip on the cluster: every dependency but Ray, at its version in
    constraints.txt.
    """
    exact = dict(re.findall(r"^([^#=\s]+)==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.M))
    names = [re.split(r"[\[<>=;\s]", line, maxsplit=1)[0] for line in dependencies()]
    known = {_plain(name): wanted for name, wanted in exact.items()}
    return [f"{name}=={known[_plain(name)]}" for name in names if name != "ray"]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def differing(wanted: dict[str, str]) -> list[str]:
    """Return a phrase for each package that is missing here or has another version, and for Python if it does
    not fit.
    """
    differ = (
        []
        if sys.version_info[:2] in PYTHONS
        else [f"Python {sys.version_info[0]}.{sys.version_info[1]} instead of 3.11 or 3.12"]
    )
    for name, exact in wanted.items():
        try:
            found = version(name).partition("+")[0]
        except PackageNotFoundError:
            found = "missing"
        if found != exact:
            differ.append(f"{name} {found} instead of {exact}")
    return differ


def main() -> None:
    """Exit with code 2 and one sentence if a version differs."""
    if differ := differing(pins()):
        print(f"nothing was started: the cluster has {', '.join(differ)}; {MEND}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
