"""At its start, an adapter changes nothing."""

from collections.abc import Iterator
from typing import Final

import torch

from surgery.apply import trainable_parameters
from surgery.bench import Bench, base_name, digests, largest_difference, tensors_of
from surgery.depth import new_names
from surgery.switch import MULTIMODAL, TEXT
from surgery.verify import Check, Outcome

_EPSILONS: Final = 4
_SMALLEST: Final = 1e-4


class StartEquality(Check):
    """Both paths give the base's logits, bit for bit, when all that was added is at its start.

    A trained adapter is set back for this check: copies as their originals, B zero. LoRA then adds
    zeros, which changes no bit in any type. Experts give the base's logits bit for bit where no
    token is an image's, and up to rounding where some are (4 epsilons of the largest logit, at
    least 1e-4 of it), unless images have positions of their own. Where a recipe trains the base in
    place, what it leaves frozen is compared with the stored original instead.
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
        measured: dict[str, float] = {}
        for path in bench.paths:
            found = bench.logits(path, images=False)
            measured[path] = largest_difference(found, bench.reference.logits)
            if measured[path]:
                faults.append(_differs(path, measured[path]))
        state = "is at its start" if at_start else "is trained, and was set back to its start"
        good = f"both paths give the base's logits bit for bit; the stored adapter {state}"
        if bench.plan.experts():
            faults += self._with_images(bench, measured)
            good = good.replace("bit;", "bit, image tokens up to rounding;")
        return self.judge(faults, good, stored_at_start=at_start, **measured)

    def _with_images(self, bench: Bench, measured: dict[str, float]) -> list[str]:
        """Experts multiply fewer rows at once, which may round otherwise."""
        if bench.plan.experts()[0].rule.positions != "plain":
            return []  # the base has no such positions
        wanted = bench.reference.logits
        found = largest_difference(bench.logits(MULTIMODAL), wanted)
        measured["images"] = found
        tolerance = max(_EPSILONS * torch.finfo(wanted.dtype).eps, _SMALLEST)
        if found <= tolerance * wanted.abs().max().item():
            return []
        return [_differs(f"{MULTIMODAL} path with image tokens", found)]

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
        same = torch.equal(bench.logits(TEXT), bench.reference.logits)
        if not differ and not same:
            faults.append("the logits differ, though no tensor does")
        good = f"{len(differ)} of {len(wanted)} tensors were trained, all of them planned"
        if not differ:
            good = "the folder is at its start, its logits are the stored original's bit for bit"
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
        if is_identity and not differ:
            found = largest_difference(bench.logits(TEXT), bench.reference.logits)
            faults += [_differs("deeper model", found)] if found else []
        good = f"{len(differ)} tensors were trained, all of them planned"
        if not differ:
            good = "each block is the stored original's"
            good += ", and so are the logits, bit for bit" if is_identity else ""
        return self.judge(faults, good, stored_at_start=not differ, tensors_changed=len(differ))


def _differing_from_origin(bench: Bench) -> Iterator[str]:
    """Names of tensors that are no longer what the plan makes of the original."""
    found, path = digests(bench.model), bench.plan.anatomy.blocks_path
    held, wanted = tensors_of(bench.model), bench.reference.digests
    outside = (name for name in found if not name.startswith(f"{path}."))
    yield from (name for name in outside if found[name] != wanted[name])
    for slot, source, own in new_names(bench.plan.depth, path):
        for name in (name for name in found if name.startswith(own)):
            origin = f"{source}{name.removeprefix(own)}"
            same = not held[name].any() if origin in slot.zeros else found[name] == wanted[origin]
            if not same:
                yield name


def _differs(what: str, difference: float) -> str:
    what = what if what.count(" ") else f"{what} path"
    return f"the {what} differs from the base by {difference:.3g} in logits"
