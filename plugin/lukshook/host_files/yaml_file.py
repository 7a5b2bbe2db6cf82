"""YAML as borgmatic and others write it, with `!include`; by a library that is read only where there is such a file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lukshook.errors import Unavailable
from lukshook.host_files.job import File, Read

_DEEPEST = 5
#: More than any configuration has; aliases of aliases would make it endless.
_MOST_NODES = 100_000


def load(file: File) -> Any:
    """What is in *file*. Raises `Unavailable` without the library, and what the library raises."""
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        hint = "install the extra yaml: docs/install.md, Extras"
        raise Unavailable("it is not read: that needs the library PyYAML", hint=hint) from error
    return _Included(yaml, file.read).load(file.text, file.path.parent, 0)


class _Included:
    """Reads a text, and what it includes in place of each `!include`."""

    def __init__(self, yaml: Any, read: Read) -> None:
        class Loader(yaml.SafeLoader):  # type: ignore[misc]
            pass

        Loader.add_multi_constructor("!", lambda loader, suffix, node: None)  # other tags of the tool
        self._yaml, self._loader, self._read, self._nodes = yaml, Loader, read, 0

    def load(self, text: str, folder: Path, depth: int) -> Any:
        loader = self._loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(self._whole(node, folder, depth))

    def _whole(self, node: Any, folder: Path, depth: int) -> Any:
        """*node*, with files in place of their names."""
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise ValueError("it is too long")
        if node.tag == "!include" and isinstance(node, self._yaml.ScalarNode):
            return self._file(folder / node.value, depth)
        if isinstance(node, self._yaml.MappingNode):
            node.value = [(key, self._whole(value, folder, depth)) for key, value in node.value]
        elif isinstance(node, self._yaml.SequenceNode):
            node.value = [self._whole(value, folder, depth) for value in node.value]
        return node

    def _file(self, path: Path, depth: int) -> Any:
        node = self._loader(self._read(path)).get_single_node() if depth < _DEEPEST else None
        if node is None:
            return self._yaml.MappingNode("tag:yaml.org,2002:map", [])
        return self._whole(node, path.parent, depth + 1)
