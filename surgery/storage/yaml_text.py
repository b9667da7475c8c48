"""YAML by PyYAML's safe loader, whose constructors fail each in its own way on a tag that lies."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value, as a YAML error where its text is none of its tag's."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            what = f"`{node.value}` is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


def load_yaml(text: str) -> Any:
    """Return what a YAML text means.

    Raises:
        yaml.YAMLError: where it isn't YAML, or a value is not what its tag says.
        RecursionError: where it is nested without end.
    """
    return yaml.load(text, _Loader)
