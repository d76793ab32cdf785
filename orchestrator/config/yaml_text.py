"""Reading of YAML within bounds: what a sweep file needs, and no text that grows when it is read."""

from collections.abc import Hashable
from typing import Any

import yaml

MOST_BYTES = 1 << 17
"""Of one file. The largest sweep file of this project has 3 KiB."""
MOST_DEPTH = 32
"""Levels of lists and mappings inside each other."""
MOST_VALUES = 20_000
"""Values of one file, each alias counted as all that it stands for."""

DIGITS = 60


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a field that stands twice in a mapping (YAML 1.2.2, 3.2.1.3)
    and what exceeds the bounds.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As PyYAML, with a bound on the depth: composing recurs."""
        if self._depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"lists and mappings nest deeper than {MOST_DEPTH} levels", self.get_mark()
            )
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> Any:
        """As PyYAML, with a bound on the values: an alias is one node in the text and all that it stands for
        in what is built.
        """
        node = super().get_single_node()
        if node is not None and _count(node, {}, set()) > MOST_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"it has more than {MOST_VALUES} values, aliases written out", node.start_mark
            )
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As PyYAML, which would keep the last of several equal fields. What is merged (`<<`) may be
        overridden.
        """
        seen: set[Hashable] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, "a field appears twice in one mapping", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _whole_number(loader: Any, node: Any) -> int:
    """As PyYAML, for numbers of at most DIGITS characters: it computes sexagesimal ones (`1:59:59`) of any
    length, which Python cannot print.
    """
    if len(node.value) > DIGITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number has more than {DIGITS} digits", node.start_mark
        )
    number: int = loader.construct_yaml_int(node)
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _count(node: Any, known: dict[int, int], open_: set[int]) -> int:
    """Values of a node with every alias written out; each node is visited once."""
    if id(node) in open_:
        raise yaml.composer.ComposerError(
            None, None, "an alias stands for a value that contains it", node.start_mark
        )
    if id(node) not in known:
        open_.add(id(node))
        parts = (
            [part for pair in node.value for part in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
        )
        known[id(node)] = 1 + (
            0 if isinstance(node, yaml.ScalarNode) else sum(_count(part, known, open_) for part in parts)
        )
        open_.discard(id(node))
    return known[id(node)]


def read_yaml(text: str) -> Any:
    """Return the value of one YAML document; YAMLError for what is none, and for one that exceeds the
    bounds.
    """
    if len(text.encode(errors="replace")) > MOST_BYTES:
        raise yaml.YAMLError(f"it has more than {MOST_BYTES} bytes")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        OverflowError,
    ) as error:  # PyYAML's, for a date or a number that is none
        raise yaml.YAMLError(
            f"a value cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        ) from None
