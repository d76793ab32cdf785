"""What installed packages offer by entry points: one reader, and one sentence per mistake."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from installed_package import install, on_path
from policy.entry_points import POLICIES, TASKS, Group, PluginError, find, names

GROUPS = pytest.mark.parametrize("group", [POLICIES, TASKS], ids=lambda group: group.offers)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path / "site") as site:
        yield site


def offer(site: Path, package: str, value: str, files: dict[str, str], version: str = "1.0") -> None:
    """Install a package that offers `walk` in both groups."""
    offers = {group.name: {"walk": value} for group in (POLICIES, TASKS)}
    install(site, package, files, offers, version)


def sentence(group: Group, name: str) -> str:
    with pytest.raises(PluginError) as caught:
        find(group, name).load()
    said = str(caught.value)
    assert "\n" not in said
    return said


@GROUPS
def test_find_returns_the_object_of_the_only_package_that_offers_it(site: Path, group: Group) -> None:
    offer(site, "walks", "walks:VALUE", {"walks.py": "VALUE = 3"}, "2.1")
    assert "walk" in names(group)
    found = find(group, "walk")
    assert (found.package, found.load()) == ("walks 2.1", 3)
    assert str(found) == f"the {group.offers} walk of the package walks 2.1 (walks:VALUE)"


@GROUPS
def test_every_mistake_of_an_entry_point_is_one_sentence(site: Path, group: Group) -> None:
    broken = {"walks/__init__.py": "raise RuntimeError('no\\nGPU')"}
    offer(site, "walks", "walks:VALUE", broken)
    assert sentence(group, "walk") == (
        f"the {group.offers} walk of the package walks 1.0 (walks:VALUE) cannot be loaded: RuntimeError: no GPU;"
        " repair or uninstall the package"
    )
    offer(site, "others", "others.walk:VALUE", {})
    assert sentence(group, "walk") == (
        f"the {group.offers} walk is offered by others 1.0 (others.walk:VALUE) and walks 1.0 (walks:VALUE);"
        " uninstall all but one"
    )
    said = sentence(group, "run\x1b")
    assert said.startswith(f"no installed package offers a {group.offers} run\\x1b; installed are ")
    assert "walk" in said
    assert said.endswith(f"(entry points {group.name}); install its package on every node")


def test_files_are_those_of_the_import_package_even_in_a_namespace(site: Path) -> None:
    texts = {
        "lab/walks/__init__.py": "raise AssertionError('imported')",
        "lab/walks/mesh.xml": "<mujoco/>",
        "lab/walks/sub/net.py": "",
        "lab/walks/__pycache__/net.pyc": "",
        "lab/others/__init__.py": "",
    }
    offer(site, "walks", "lab.walks.sub:VALUE", texts)
    assert [*find(POLICIES, "walk").files()] == [
        "lab/walks/__init__.py",
        "lab/walks/mesh.xml",
        "lab/walks/sub/net.py",
    ]
    offer(site, "walks", "single:VALUE", {"single.py": ""})
    assert find(POLICIES, "walk").files() == {"single.py": site / "single.py"}
    offer(site, "walks", "nowhere.walks:VALUE", {})
    with pytest.raises(PluginError, match="there is no module nowhere; repair or uninstall the package"):
        find(POLICIES, "walk").files()
