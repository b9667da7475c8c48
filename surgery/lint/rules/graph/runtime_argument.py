"""Rule L209: arguments of other operators that are computed."""

from typing import Final

from surgery.lint.rules.graph._run_time import ARGUMENTS, RunTimeRule

_OWN_RULE: Final = ("TopK", "Slice", "Expand", "Range")


class RuntimeArgument(RunTimeRule):
    """An argument that says how to compute is known only at run time.

    Finds a shape of `Reshape`, axes of a reduction, `Squeeze` or `Unsqueeze`, pads, repeats,
    sizes of a split, the axis of `CumSum`, bounds of `Clip`, scales of `Resize`, a depth of
    `OneHot` or lengths of sequences in `LSTM` and `GRU` that are no constants.

    ## Why is it bad?

    ONNX has these as inputs, the NPU as parameters that are fixed when the graph is compiled.
    The compiler refuses the node, for instance with `QNN doesn't support dynamic min/max`.

    ## Example

    ```
    g (float[2, 8] x, int64[2] shape) => (float[N, M] y) { y = Reshape(x, shape) }
    ```

    ## Use instead

    Constants. `Clip` with bounds that move is `Min` and `Max`.

    ## Evidence

    The compiler, which refused it.
    """

    code = "L209"
    name = "runtime-argument"
    operators = tuple(name for name in ARGUMENTS if name not in _OWN_RULE)
    why = "on the NPU it is a parameter, which is fixed when the graph is compiled"
