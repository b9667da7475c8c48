"""Rule L205: TopK whose k is computed."""

from surgery.lint.rules.graph._run_time import RunTimeRule


class RuntimeTopk(RunTimeRule):
    """`TopK` takes its k at run time.

    Finds `TopK` whose k is not a constant.

    ## Why is it bad?

    The size of the output is k. The compiler wants it beforehand, and refuses the node with
    `The number of top elements to retrieve must be specified as constant input`.

    ## Example

    ```
    g (float[1, 64] scores, int64[1] k) => (float[1, K] best, int64[1, K] index) {
        best, index = TopK(scores, k)
    }
    ```

    ## Use instead

    A constant k; `TopK` over any axis compiles then. Where fewer are wanted, take the largest k
    and mask the rest.

    ## Evidence

    The compiler, which refused it; with a constant k it compiles and computes right.
    """

    code = "L205"
    name = "runtime-topk"
    operators = ("TopK",)
    why = "the size of its output depends on k, which the compiler must know"
    fix = "give k as a constant; where fewer are wanted, mask the rest"
