"""Recipes of presets, as the defaults of a sweep file's fields."""

from collections.abc import Mapping
from typing import Any

from orchestrator.config.lines import train_fields
from orchestrator.config.schema import Train
from policy.config import Recipe
from policy.presets import RECIPES, WITHOUT_PROPRIOCEPTION

FIELDS = tuple(
    name for name in Recipe.model_fields if any(name in r.model_fields_set for r in RECIPES.values())
)
"""Fields in which the recipes of presets differ."""


def with_recipes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep file as read, with the values of its presets' recipes where it has none of its own.

    A line of another preset gets those of its preset. Parts that are no mappings are returned as they are;
    validation reports them.
    """
    policy, train = raw.get("policy") or {}, raw.get("train")
    preset = policy.get("preset", "tiny") if isinstance(policy, Mapping) else None
    if preset not in RECIPES or not isinstance(train, Mapping):
        return dict(raw)
    filled = {**RECIPES[preset].model_dump(mode="json", exclude_unset=True), **train}
    lines = policy.get("lines") or ()
    lines = [_line(line, train, filled) for line in lines] if isinstance(lines, list | tuple) else lines
    told = {**raw, "train": filled}
    if lines:
        told["policy"] = {**policy, "lines": lines}
    suite = raw.get("suite")
    if preset in WITHOUT_PROPRIOCEPTION and isinstance(suite, Mapping) and not any(map(_external, lines)):
        told["suite"] = {"proprio": [], **suite}
    return told


def without_recipes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored sweep with the values that versions before 0.3 gave to the fields that it lacks, so
    that no recipe fills them.
    """
    defaults = {name: Train.model_fields[name].get_default() for name in FIELDS}
    told = {**raw, "train": {**defaults, **raw.get("train", {})}}
    return told | {"suite": {"proprio": None, **raw.get("suite", {})}}


def chosen_fields(sweep_preset: str, train: Train) -> list[str]:
    """Return the fields of `train` with a value other than the preset's or the default, by name."""
    recipe = RECIPES[sweep_preset]
    own = {name: getattr(recipe, name, None) for name in Recipe.model_fields}
    return sorted(
        name for name in train.model_fields_set if name not in own or getattr(train, name) != own[name]
    )


def _external(line: Any) -> bool:
    name = line.get("policy") if isinstance(line, Mapping) else line
    return isinstance(name, str) and "/" in name


def _line(line: Any, train: Mapping[str, Any], filled: Mapping[str, Any]) -> Any:
    """Return a line with its preset's recipe. train: of the sweep as read; filled: with its own preset's."""
    own = line.get("train", {}) if isinstance(line, Mapping) else None
    if not isinstance(own, Mapping) or _external(line) or line.get("preset") not in RECIPES:
        return line
    recipe, default = (r.model_dump(mode="json") for r in (RECIPES[line["preset"]], Recipe()))
    left = [name for name in FIELDS if name in train_fields(line.get("policy", "")) and name not in train]
    differing = {name: recipe[name] for name in left if recipe[name] != filled.get(name, default[name])}
    return {**line, "train": {**differing, **own}} if differing or own else line
