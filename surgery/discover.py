"""Find what lies in a folder of the package: one file adds one thing, and no list names them."""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def names_in(package: str) -> list[str]:
    """The names of the modules of a package folder, sorted; none of them is imported.

    A name that begins with an underscore is what the others share, and is left out.

    Args:
        package: dotted name, such as `surgery.operations`.
    """
    folder = importlib.import_module(package)
    found = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    return [name for name in found if not name.startswith("_")]


def modules_in(package: str) -> list[ModuleType]:
    """Import every module of a package folder, in the order of `names_in`.

    Args:
        package: dotted name, such as `surgery.operations`.
    """
    return [importlib.import_module(f"{package}.{name}") for name in names_in(package)]


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
