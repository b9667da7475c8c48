"""Rule L228: operators in a form that the compiler does not take."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import LiveGraph, attribute, dims, given, operator
from surgery.lint.rules.graph import _branches
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node, Value


class OperatorForm(NodeRule):
    """An operator that the compiler has, with an option or a type that it has not.

    ## Why is it bad?

    The node stays on the CPU and splits the graph.

    ## Example

    `Attention` with a boolean mask: `boolean attn_mask is not supported; pre-convert to a float
    additive bias`. `If` at run time whose branches give two results, or take a weight from outside:
    `If implicit input … is produced outside the QNN partition`.

    ## Use instead

    What the finding says.

    ## Evidence

    The compiler, asked with the 1,884 single-operator graphs of ONNX's own test suite (onnx
    1.23.2), and with real files.
    """

    code = "L228"
    name = "operator-form"
    evidence = "proved"
    why = "the compiler refuses the node in this form"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return nodes in a refused form; see `NodeRule.faults`."""
        for node in graph.nodes:
            for is_refused, form, fix in _FORMS.get(operator(node), ()):
                if is_refused(node):
                    yield Fault(node, f"`{operator(node)}` {form}", fix=fix)


def _is_type(value: "Value | None", *names: str) -> bool:
    return value is not None and value.dtype is not None and value.dtype.name in names


def _has(index: int) -> Callable[["Node"], bool]:
    return lambda node: given(node, index) is not None


def _is_set(name: str) -> Callable[["Node"], bool]:
    return lambda node: bool(attribute(node, name, 0))


def _is_single(node: "Node") -> bool:
    return len(node.inputs) < 2


def _has_boolean_mask(node: "Node") -> bool:
    return _is_type(given(node, 3), "BOOL")


def _has_more_outputs(node: "Node") -> bool:
    return any(out.uses() or out.is_graph_output() for out in node.outputs[1:])


def _rank_above(most: int) -> Callable[["Node"], bool]:
    return lambda node: len(dims(node.inputs[0]) or ()) > most


def _is_not_over_last(node: "Node") -> bool:
    axis, sizes = attribute(node, "axis", -1), dims(node.inputs[0])
    return sizes is not None and axis not in (-1, len(sizes) - 1)


def _is_of_integers(node: "Node") -> bool:
    return _is_type(node.inputs[0], "INT32", "INT64", "UINT32", "UINT64")


def _is_of_booleans(node: "Node") -> bool:
    return _is_type(node.outputs[0], "BOOL")


def _ends_in_int64(node: "Node") -> bool:
    whole = _is_type(node.outputs[0], "INT64") and node.outputs[0].is_graph_output()
    return whole and not _is_type(node.inputs[0], "INT32", "INT64", "BOOL")


def _is_whole_power(node: "Node") -> bool:
    return any(_is_type(value, "INT32", "INT64") for value in node.inputs)


def _is_dilated(node: "Node") -> bool:
    return any(step != 1 for step in attribute(node, "dilations", ()))


def _reduces(*names: str) -> Callable[["Node"], bool]:
    return lambda node: attribute(node, "reduction", "none") in names


def _is_scaled(node: "Node") -> bool:
    return attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) not in (0, 1)


_Form = tuple[Callable[["Node"], bool], str, str]
_LAST: Final = "transpose that axis to the end before, and back after"
_ONE: Final[_Form] = (_is_single, "has a single input", "leave it out: it changes nothing")
_RANK: Final = "fold leading dimensions into one before, and unfold them after"
_SPLIT: Final = "export one graph for each branch, and choose between them outside"
_SELECT: Final[_Form] = (
    _is_set("select_last_index"),
    "takes the last of equal values",
    "take the first, which is the default",
)
_FORMS: Final[dict[str, tuple[_Form, ...]]] = {
    "If": (
        (
            _branches.gives_several,
            "gives more than one result",
            "join them by `Concat` in each branch, and split after it",
        ),
        (_branches.gives_unlike, "has branches whose results differ in size", _SPLIT),
        (
            _branches.shares_names,
            "has branches that use one name for two things",
            "name what is within the branches differently",
        ),
        (
            _branches.takes_stored,
            "takes a stored tensor of the graph around it into a branch",
            "store it within the branch, or compute with it before",
        ),
    ),
    "Attention": (
        (_has_boolean_mask, "has a boolean mask", "give a float mask that is added"),
        (_has(6), "has key lengths at run time", "mask the rest by the float mask"),
        (_is_set("softmax_precision"), "sets the precision of its softmax", "leave it out"),
    ),
    "LayerNormalization": (
        (_has_more_outputs, "gives its mean or deviation", "compute these by `ReduceMean`"),
        (_rank_above(4), "is over more than four dimensions", _RANK),
    ),
    "RMSNormalization": (
        (_is_not_over_last, "is not over the last axis alone", _LAST),
        (_rank_above(4), "is over more than four dimensions", _RANK),
    ),
    "MatMul": ((_is_of_integers, "is of integers", "cast to float before, and back after"),),
    "Where": ((_is_of_booleans, "picks booleans", "write it with `And`, `Or` and `Not`"),),
    "Cast": ((_ends_in_int64, "makes an int64 output of floats", "give int32 as the output"),),
    "Pow": ((_is_whole_power, "is of integers", "give base and exponent as floats"),),
    "Mod": ((_is_set("fmod"), "is of floats (fmod)", "write it with `Div`, `Floor` and `Mul`"),),
    "MaxPool": ((_is_dilated, "is dilated", "take every other row by `Slice` before"),),
    "AveragePool": ((_is_dilated, "is dilated", "take every other row by `Slice` before"),),
    "Gemm": ((_is_scaled, "has a factor alpha or beta", "multiply the weights by it instead"),),
    "Pad": ((_has(3), "names axes", "give pads for every axis"),),
    "ScatterND": ((_reduces("max", "min"), "reduces by max or min", "reduce by add or none"),),
    "ScatterElements": (
        (_reduces("mul", "max", "min"), "reduces by mul, max or min", "reduce by add or none"),
    ),
    "ArgMax": (_SELECT,),
    "ArgMin": (_SELECT,),
    "Max": (_ONE,),
    "Min": (_ONE,),
    "Sum": (_ONE,),
    "Mean": (_ONE,),
}
