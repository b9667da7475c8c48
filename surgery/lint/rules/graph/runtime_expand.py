"""Rule L207: expand to a computed shape."""

from surgery.lint.rules.graph._run_time import RunTimeRule


class RuntimeExpand(RunTimeRule):
    """`Expand` takes its shape at run time.

    Finds `Expand` whose shape is not a constant. A shape that is read off a tensor of fixed
    size counts as a constant, as it is folded.

    ## Why is it bad?

    The compiler refuses the node with `Cannot get shape`, or with `QNN doesn't support dynamic
    shape` where the size of the output is annotated.

    ## Example

    ```
    g (float[1, 8] x, int64[2] shape) => (float[N, 8] y) { y = Expand(x, shape) }
    ```

    ## Use instead

    A constant shape; or no `Expand` at all, as arithmetic broadcasts by itself.

    ## Evidence

    The compiler, which refused it; with a constant shape it compiles and computes right.
    """

    code = "L207"
    name = "runtime-expand"
    operators = ("Expand",)
    why = "the compiler lays out each tensor beforehand"
    fix = "give the shape as a constant, or leave it to broadcasting"
