"""Rule L200: a block that has no static graph."""

from surgery.lint.base import Rule


class NotTraceable(Rule):
    """A block that torch.export makes no static graph of, with its reason.

    ## Why is it bad?

    The NPU's compiler takes graphs whose shapes are all known, and an operator for each step. Where
    the shape of a tensor depends on the data, such as on how many tokens are image tokens, there is
    no such graph to give it.

    ## Example

    `op: expert` in its `gather` form picks the rows of the image tokens by index. torch.export
    stops at `GuardOnDataDependentSymNode`.

    ## Use instead

    `form: blend`, or `form: segments` with `runs`; `op: duplicate`; a dense base. Where the reason
    is that a block keeps no keys and values, as a state-space block, this is a warning: it was
    not examined.

    ## Evidence

    torch.export itself, when lint runs with `--graph`. That the compiler wants static shapes is in
    the documentation of onnxruntime's QNN execution provider, and was seen with 2.7.0: a dynamic
    dimension is refused with `Cannot get shape`.
    """

    code = "L200"
    name = "not-traceable"
    evidence = "proved"
    known_by = "torch.export, asked by lint"
