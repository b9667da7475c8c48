"""Find the plug-ins of a package folder: one file adds one thing, and no list names them."""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def names_in(package: str) -> list[str]:
    """The names of the modules in a package and its subpackages, sorted; none is imported.

    Names that begin with an underscore are shared helpers and are left out.

    Args:
        package: Dotted name, such as `surgery.operations`.
    """
    return sorted(_module_paths(package))


def modules_in(package: str) -> list[ModuleType]:
    """Import every module of a package, in the order of `names_in`.

    Args:
        package: Dotted name, such as `surgery.operations`.
    """
    return [importlib.import_module(path) for _, path in sorted(_module_paths(package).items())]


def classes_in(package: str, base: type[T]) -> list[type[T]]:
    """Every concrete subclass of `base` that a module of the package defines, by module name."""
    return [
        member
        for module in modules_in(package)
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, base)
        and not inspect.isabstract(member)
        and member.__module__ == module.__name__
        and not member.__name__.startswith("_")
    ]


def _module_paths(package: str) -> dict[str, str]:
    """From the last part of each module's name to its dotted name."""
    folder = importlib.import_module(package)
    paths: dict[str, str] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        path = f"{package}.{module.name}"
        paths |= _module_paths(path) if module.ispkg else {module.name: path}
    return {name: path for name, path in paths.items() if not name.startswith("_")}
