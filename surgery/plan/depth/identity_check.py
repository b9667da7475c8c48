"""Check, without weights, that a block is an identity when what writes to the residual is zero.

It isn't in a block with norms after its sums. The real class runs on the CPU with random weights:
strided views of one short random vector, which take no memory at any width.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.model.anatomy import Anatomy
from surgery.plan.depth.changes import Slot

if TYPE_CHECKING:
    from torch import nn

_TOKENS: Final = 4
_SCALE: Final = 0.05


class _Stop(Exception):  # noqa: N818
    """Raised after the last checked block, so that the rest need not run."""


def refuse_no_identity(deeper: Any, anatomy: Anatomy, slots: Sequence[Slot]) -> None:
    """Run the first copy of each kind of block that should start as an identity.

    Args:
        deeper: The deeper model on the meta device.
        anatomy: Anatomy of the base.
        slots: The new depth.

    Raises:
        SurgeryError: P219, where a block's output is not its input, bit for bit.
    """
    wanted = _first_of_each_kind(anatomy, slots)
    if not wanted:
        return
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = type(deeper)(deeper.config).float().eval()
    # a kernel for all experts at once refuses overlapping strided views; one by one has the same
    # result where the output projection is zero
    model.set_experts_implementation("eager")
    _make_up_weights(model)
    blocks = model.get_submodule(anatomy.blocks_path)
    for position, zeros in wanted.items():
        _set_to_zero(blocks[position], zeros)
    try:
        changed = _run(model, blocks, wanted)
    except Exception as error:  # a model may fail in as many ways as there are classes
        raise SurgeryError(
            diagnostic(
                "P219.unproved", source=anatomy.source, reason=first_line(error), key="start"
            )
        ) from error
    if changed:
        raise SurgeryError(_no_identity(anatomy, slots[changed[0]].source))


def _first_of_each_kind(anatomy: Anatomy, slots: Sequence[Slot]) -> dict[int, list[str]]:
    """From an index in the new depth to the names, in the block, of the zeroed tensors."""
    found: dict[int, list[str]] = {}
    seen: set[int] = set()
    for position, slot in enumerate(slots):
        kind = anatomy.sequence[slot.source]
        if slot.insert and slot.insert.start == "identity" and kind not in seen:
            seen.add(kind)
            prefix = f"{slot.insert.path}."
            found[position] = [name.removeprefix(prefix) for name in slot.zeros]
    return found


def _make_up_weights(model: "nn.Module") -> None:
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                values = torch.randn(sum(parameter.shape) + 1, generator=generator) * _SCALE
                weights = values.as_strided(parameter.shape, [1] * parameter.dim())
                module._parameters[name] = nn.Parameter(weights, requires_grad=False)


def _set_to_zero(block: "nn.Module", zeros: Iterable[str]) -> None:
    import torch
    from torch import nn

    for name in zeros:
        path, _, last = name.rpartition(".")
        owner = block.get_submodule(path)
        shape = owner.get_parameter(last).shape
        zero = torch.zeros(1).expand(shape)
        owner._parameters[last] = nn.Parameter(zero, requires_grad=False)


def _run(model: "nn.Module", blocks: Any, positions: Iterable[int]) -> list[int]:
    """The indices of the blocks whose output is not their input."""
    import torch

    changed: list[int] = []
    given: dict[int, torch.Tensor] = {}
    last = max(positions)

    def before(position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        given[position] = hidden.clone()

    def after(position: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple | list) else output
        if not torch.equal(hidden, given[position]):
            changed.append(position)
        if position == last:
            raise _Stop

    for position in positions:
        blocks[position].register_forward_pre_hook(
            lambda _, args, kwargs, at=position: before(at, args, kwargs), with_kwargs=True
        )
        blocks[position].register_forward_hook(
            lambda _, args, output, at=position: after(at, output)
        )
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(1, _TOKENS + 1)[None], use_cache=False)
    except _Stop:
        return changed
    raise RuntimeError(f"its block {last} doesn't run")


def _no_identity(anatomy: Anatomy, source: int) -> Diagnostic:
    kind = anatomy.block(source)
    return diagnostic(
        "P219.not_identity",
        block=source,
        source=anatomy.source,
        class_name=kind.class_name,
        key="start",
    )
