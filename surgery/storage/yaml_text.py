"""YAML by PyYAML's safe loader, with one type of error for values that don't fit their tag."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; a YAML error where its text doesn't fit its tag."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            what = f"`{node.value}` is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


def load_yaml(text: str) -> Any:
    """Parse a YAML text.

    Raises:
        yaml.YAMLError: Where it isn't YAML, or a value doesn't fit its tag.
        RecursionError: Where it is nested too deep.
    """
    return yaml.load(text, _Loader)
