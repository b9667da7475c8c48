"""At its start, an adapter changes nothing."""

from collections.abc import Iterator

from surgery.adapter.apply import trainable_parameters
from surgery.model.numerics import Difference
from surgery.paths.path_state import MULTIMODAL, TEXT
from surgery.plan.depth.changes import new_names
from surgery.verification.context import (
    VerificationContext,
    base_name,
    named_tensors,
    tensor_digests,
)
from surgery.verification.runner import Check, Outcome


class StartEquality(Check):
    """Both paths give the base's logits when all that was added has its initial values.

    A trained adapter is reset for this check: copies as their originals, B zero. The text path
    computes with the base's own tensors and gives its logits bit for bit. On the multimodal path
    LoRA adds zeros, which changes no bit in any dtype, but copies have other addresses in memory,
    by which kernels may round differently, and experts multiply fewer rows at once at image tokens,
    unless images have positions of their own: the outcome says whether the logits are the same bit
    for bit or up to rounding. Where a recipe trains the base in place, what stays frozen is
    compared with the stored original instead.
    """

    def run(self, context: VerificationContext) -> Outcome:
        """Reset everything to its start and compare; see `Check.run`."""
        if context.plan.changes_depth:
            return self._depth(context)
        if context.plan.in_place:
            return self._in_place(context)
        if any(t.start == "weights" for edit in context.plan.edits for t in edit.tensors):
            return self.skip(
                "the start is computed from the base's weights, and can't be computed again"
            )
        context.reset_to_start()
        at_start = context.is_at_start()
        failures: list[str] = []
        found: dict[str, Difference] = {
            path: context.difference(context.logits(path, images=False)) for path in context.paths
        }
        if context.plan.experts() and context.plan.experts()[0].rule.positions == "plain":
            found["images"] = context.difference(context.logits(MULTIMODAL))
        for path, difference in found.items():
            if not (difference.is_zero if path == TEXT else difference.is_rounding):
                failures.append(_differs(_named(path), difference))
        state = "is at its start" if at_start else "is trained, and was reset to its start"
        success = f"both paths give the base's logits bit for bit; the stored adapter {state}"
        rounded = [path for path, difference in found.items() if not difference.is_zero]
        if rounded:
            names = " and ".join(f"{_named(path)} up to rounding" for path in rounded)
            success = success.replace(" bit;", f" bit, {names};")
        measured = {path: difference.largest for path, difference in found.items()}
        return self.judge(failures, success, stored_at_start=at_start, **measured)

    def _in_place(self, context: VerificationContext) -> Outcome:
        """Compare with the stored original, tensor by tensor."""
        wanted, planned = context.reference.digests, set(context.plan.trains.base)
        found = {base_name(name): bits for name, bits in tensor_digests(context.model).items()}
        aliases = context.plan.anatomy.tied
        differ = [name for name, bits in wanted.items() if found.get(name) != bits]
        frozen = [name for name in differ if aliases.get(name, name) not in planned]
        failures = (
            [f"{len(frozen)} frozen tensors differ from the stored original, {frozen[0]} first"]
            if frozen
            else []
        )
        success = f"{len(differ)} of {len(wanted)} tensors were trained, all of them planned"
        if not differ:
            difference = context.difference(context.logits(TEXT))
            failures += [] if difference.is_rounding else [_differs("the folder", difference)]
            success = "the folder is at its start, its logits are the stored original's "
            success += "bit for bit" if difference.is_zero else f"up to rounding ({difference})"
        return self.judge(
            failures, success, stored_at_start=not differ, tensors_changed=len(differ)
        )

    def _depth(self, context: VerificationContext) -> Outcome:
        """Compare each block with the one of the stored original that it comes from."""
        differ = list(_differing_from_origin(context))
        trained = {name for name, _ in trainable_parameters(context.plan, context.model)}
        frozen = [name for name in differ if name not in trained]
        failures = (
            [f"{len(frozen)} frozen tensors differ from the stored original, {frozen[0]} first"]
            if frozen
            else []
        )
        added = [slot.insert for slot in context.plan.depth if slot.insert]
        is_identity = not context.plan.removed and all(e.start == "identity" for e in added)
        success = f"{len(differ)} tensors were trained, all of them planned"
        if not differ:
            success = "each block is the stored original's"
        if is_identity and not differ:
            difference = context.difference(context.logits(TEXT))
            failures += [] if difference.is_rounding else [_differs("the deeper model", difference)]
            success += ", and so are the logits, "
            success += "bit for bit" if difference.is_zero else f"up to rounding ({difference})"
        return self.judge(
            failures, success, stored_at_start=not differ, tensors_changed=len(differ)
        )


def _differing_from_origin(context: VerificationContext) -> Iterator[str]:
    """Names of tensors that are no longer what the plan makes of the original."""
    found, path = tensor_digests(context.model), context.plan.anatomy.blocks_path
    tensors, wanted = named_tensors(context.model), context.reference.digests
    outside = (name for name in found if not name.startswith(f"{path}."))
    yield from (name for name in outside if found[name] != wanted[name])
    for slot, source, own in new_names(context.plan.depth, path):
        for name in (name for name in found if name.startswith(own)):
            origin = f"{source}{name.removeprefix(own)}"
            same = (
                not tensors[name].any() if origin in slot.zeros else found[name] == wanted[origin]
            )
            if not same:
                yield name


def _named(path: str) -> str:
    return {"images": f"the {MULTIMODAL} path with image tokens"}.get(path, f"the {path} path")


def _differs(what: str, difference: Difference) -> str:
    return f"{what} differs from the base in logits by {difference}"
