"""Rule L208: range with computed bounds."""

from surgery.lint.rules.graph._run_time import RunTimeRule


class RuntimeRange(RunTimeRule):
    """`Range` takes its bounds at run time.

    Finds `Range` of which start, limit or delta is not a constant.

    ## Why is it bad?

    The compiler refuses the node: `Range: all inputs (start, limit, delta) must be constant
    initializers. Dynamic Range inputs are not supported by QNN EP.`

    ## Example

    ```
    g (int64 past, int64 end, int64 one) => (int64[N] positions) {
        positions = Range(past, end, one)
    }
    ```

    ## Use instead

    Positions as an input of the graph, or a constant `Range` of fixed length plus an offset
    that is an input.

    ## Evidence

    The compiler, which refused it; with constants it is folded.
    """

    code = "L208"
    name = "runtime-range"
    operators = ("Range",)
    why = "all of its inputs must be constants"
    fix = "give positions as an input, or add an offset to a constant range"
