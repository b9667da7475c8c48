"""Change the class of an existing module to a subclass that adds to it.

PEFT and transformers decide by a module's class, and tensor names must not change, so a module can
be neither wrapped nor replaced. `torch.nn.utils.parametrize` and FSDP2's `fully_shard` do the same.
"""

from typing import Any, Final

_made: Final[dict[tuple[type, type], type]] = {}


def with_mixin(mixin: type, cls: Any) -> Any:
    """Return the cached subclass of `cls` with `mixin` as its first base."""
    if (mixin, cls) not in _made:
        name = f"{mixin.__name__.removesuffix('Layer').removesuffix('Model')}{cls.__name__}"
        _made[mixin, cls] = type(name, (mixin, cls), {})
    return _made[mixin, cls]


def reduce_mixin(mixin: type, made: object) -> Any:
    """How to pickle or copy such a module, whose class can't be imported by name."""
    return _begin, (mixin, type(made).__bases__[1]), vars(made)


def _begin(mixin: type, cls: type) -> Any:
    made = with_mixin(mixin, cls)
    return made.__new__(made)
