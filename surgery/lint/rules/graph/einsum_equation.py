"""Rule L212: einsum equations that the compiler can't turn into products of matrices."""

import re
from collections.abc import Iterable
from typing import Final

from surgery.lint.onnx.live_nodes import LiveGraph, attribute
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

_FORM: Final = re.compile(r"([a-zA-Z]{2,}),([a-zA-Z]{2,})->([a-zA-Z]{2,})")
_TAKEN: Final = frozenset(("abcd,bed->abce", "abcd,ced->abce", "abcd,aecb->aecd"))
"""With letters in the order of their first use; the last is `bchq,bkhc->bkhq`."""


class EinsumEquation(NodeRule):
    """`Einsum` with an equation outside of the few that the compiler knows.

    It knows a product of matrices with the same leading axes on both sides, the second as it is
    or transposed, and three forms over four axes: `bhwc,hkc->bhwk`, `bhwc,wkc->bhwk`, and
    `bchq,bkhc->bkhq`. One operand, three operands and `...` are refused.

    ## Why is it bad?

    The node stays on the CPU: `Einsum unsupported equation: btd,edf->btef`. In a model with
    experts or with attention written this way, that is where the work is.

    ## Example

    `btd,edf->btef`, as a dense mixture of experts is often written; `bthd,bshd->bhts`.

    ## Use instead

    `MatMul`, with `Transpose` and `Reshape` around it: `btd,edf->btef` is one `MatMul` of (b,
    1, t, d) with (e, d, f).

    ## Evidence

    The compiler, asked for 40 equations; the rule says of each what it answered.
    """

    code = "L212"
    name = "einsum-equation"
    evidence = "proved"
    fix = "write it as `MatMul`, with `Transpose` and `Reshape` around it"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return each `Einsum` whose equation is not known; see `NodeRule.faults`."""
        for node in graph.of("Einsum"):
            equation = str(attribute(node, "equation", "")).replace(" ", "")
            if not _is_taken(equation):
                why = f"the compiler says `Einsum unsupported equation: {equation}`"
                yield Fault(node, f"`Einsum` with `{equation}`", why)


def _is_taken(equation: str) -> bool:
    form = _FORM.fullmatch(equation)
    if form is None:
        return False
    first, second, result = form.groups()
    return _is_product(first, second, result) or _ordered(equation) in _TAKEN


def _is_product(first: str, second: str, result: str) -> bool:
    """Whether it is `MatMul`, with the second operand as it is or transposed."""
    if not len(first) == len(second) == len(result) or first[:-2] != second[:-2]:
        return False
    leading, rows, inner = first[:-2], first[-2], first[-1]
    straight = second == f"{leading}{inner}{result[-1]}"
    transposed = second == f"{leading}{result[-1]}{inner}"
    return result[:-1] == leading + rows and (straight or transposed)


def _ordered(equation: str) -> str:
    letters = dict.fromkeys(letter for letter in equation if letter.isalpha())
    names = {letter: chr(ord("a") + index) for index, letter in enumerate(letters)}
    return "".join(names.get(letter, letter) for letter in equation)
