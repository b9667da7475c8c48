"""Rule L206: slice whose bounds are computed."""

from surgery.lint.rules.graph._run_time import RunTimeRule


class RuntimeSlice(RunTimeRule):
    """`Slice` takes its bounds at run time.

    Finds `Slice` whose starts, ends, axes or steps are not constants.

    ## Why is it bad?

    The compiler refuses the node with `QNN doesn't support dynamic slice`, also where the size
    of the output is annotated.

    ## Example

    ```
    g (float[64, 8] cache, int64[1] begin, int64[1] end) => (float[16, 8] window) {
        window = Slice(cache, begin, end)
    }
    ```

    ## Use instead

    `Gather` with a tensor of positions as an input of the graph: its size is fixed, and it
    compiles. For a causal mask or a rotary table, give the rows that are wanted as an input.

    ## Evidence

    The compiler, which refused it; `Gather` with positions at run time compiles and computes
    right.
    """

    code = "L206"
    name = "runtime-slice"
    operators = ("Slice",)
    why = "the compiler does not take bounds that move, also where the size is annotated"
    fix = "use `Gather` with positions as an input, or give the window itself as an input"
