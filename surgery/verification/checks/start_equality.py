"""At its start, an adapter changes nothing."""

from collections.abc import Iterator

from surgery.adapter.apply import trainable_parameters
from surgery.model.numerics import Difference
from surgery.paths.path_state import MULTIMODAL, TEXT
from surgery.plan.depth.changes import new_names
from surgery.verification.runner import Check, Outcome
from surgery.verification.testbed import Bench, base_name, digests, named_tensors


class StartEquality(Check):
    """Both paths give the base's logits when all that was added is at its start.

    A trained adapter is set back for this check: copies as their originals, B zero. The text path
    computes with the base's own tensors and gives its logits bit for bit. On the multimodal path
    LoRA adds zeros, which changes no bit in any type, but copies lie elsewhere in memory, by which
    kernels may round otherwise, and experts multiply fewer rows at once where tokens are images',
    unless images have positions of their own: the outcome says whether the logits are the same bit
    for bit or up to rounding. Where a recipe trains the base in place, what it leaves frozen is
    compared with the stored original instead.
    """

    def run(self, bench: Bench) -> Outcome:
        """Set all to its start and compare; see `Check.run`."""
        if bench.plan.changes_depth:
            return self._depth(bench)
        if bench.plan.in_place:
            return self._in_place(bench)
        if any(t.start == "weights" for edit in bench.plan.edits for t in edit.tensors):
            return self.skip(
                "the start is computed from the base's weights, and can't be made anew"
            )
        bench.start_over()
        at_start = bench.is_at_start()
        faults: list[str] = []
        found: dict[str, Difference] = {
            path: bench.difference(bench.logits(path, images=False)) for path in bench.paths
        }
        if bench.plan.experts() and bench.plan.experts()[0].rule.positions == "plain":
            found["images"] = bench.difference(bench.logits(MULTIMODAL))
        for path, seen in found.items():
            if not (seen.is_zero if path == TEXT else seen.is_rounding):
                faults.append(_differs(_named(path), seen))
        state = "is at its start" if at_start else "is trained, and was set back to its start"
        good = f"both paths give the base's logits bit for bit; the stored adapter {state}"
        rounded = [path for path, seen in found.items() if not seen.is_zero]
        if rounded:
            names = " and ".join(f"{_named(path)} up to rounding" for path in rounded)
            good = good.replace(" bit;", f" bit, {names};")
        measured = {path: seen.largest for path, seen in found.items()}
        return self.judge(faults, good, stored_at_start=at_start, **measured)

    def _in_place(self, bench: Bench) -> Outcome:
        """Compare with the stored original, tensor by tensor."""
        wanted, planned = bench.reference.digests, set(bench.plan.trains.base)
        found = {base_name(name): bits for name, bits in digests(bench.model).items()}
        aliases = bench.plan.anatomy.tied
        differ = [name for name, bits in wanted.items() if found.get(name) != bits]
        frozen = [name for name in differ if aliases.get(name, name) not in planned]
        faults = (
            [f"{len(frozen)} frozen tensors differ from the stored original, {frozen[0]} first"]
            if frozen
            else []
        )
        good = f"{len(differ)} of {len(wanted)} tensors were trained, all of them planned"
        if not differ:
            seen = bench.difference(bench.logits(TEXT))
            faults += [] if seen.is_rounding else [_differs("the folder", seen)]
            good = "the folder is at its start, its logits are the stored original's "
            good += "bit for bit" if seen.is_zero else f"up to rounding ({seen})"
        return self.judge(faults, good, stored_at_start=not differ, tensors_changed=len(differ))

    def _depth(self, bench: Bench) -> Outcome:
        """Compare each block with the one of the stored original that it comes from."""
        differ = list(_differing_from_origin(bench))
        trained = {name for name, _ in trainable_parameters(bench.plan, bench.model)}
        frozen = [name for name in differ if name not in trained]
        faults = (
            [f"{len(frozen)} frozen tensors differ from the stored original, {frozen[0]} first"]
            if frozen
            else []
        )
        added = [slot.insert for slot in bench.plan.depth if slot.insert]
        is_identity = not bench.plan.removed and all(e.start == "identity" for e in added)
        good = f"{len(differ)} tensors were trained, all of them planned"
        if not differ:
            good = "each block is the stored original's"
        if is_identity and not differ:
            seen = bench.difference(bench.logits(TEXT))
            faults += [] if seen.is_rounding else [_differs("the deeper model", seen)]
            good += ", and so are the logits, "
            good += "bit for bit" if seen.is_zero else f"up to rounding ({seen})"
        return self.judge(faults, good, stored_at_start=not differ, tensors_changed=len(differ))


def _differing_from_origin(bench: Bench) -> Iterator[str]:
    """Names of tensors that are no longer what the plan makes of the original."""
    found, path = digests(bench.model), bench.plan.anatomy.blocks_path
    held, wanted = named_tensors(bench.model), bench.reference.digests
    outside = (name for name in found if not name.startswith(f"{path}."))
    yield from (name for name in outside if found[name] != wanted[name])
    for slot, source, own in new_names(bench.plan.depth, path):
        for name in (name for name in found if name.startswith(own)):
            origin = f"{source}{name.removeprefix(own)}"
            same = not held[name].any() if origin in slot.zeros else found[name] == wanted[origin]
            if not same:
                yield name


def _named(path: str) -> str:
    return {"images": f"the {MULTIMODAL} path with image tokens"}.get(path, f"the {path} path")


def _differs(what: str, seen: Difference) -> str:
    return f"{what} differs from the base in logits by {seen}"
