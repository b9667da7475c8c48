"""Rule L302: a graph at which the compiler or the emulator fails."""

from surgery.lint.base import Rule


class CompileFailed(Rule):
    """A graph whose nodes are all taken, and which then fails to compile or to run.

    ## Why is it bad?

    There is no program for the NPU, and the compiler names no node that is to blame.

    ## Example

    `Failed to finalize QNN graph. Error: QNN_COMMON_ERROR_MEM_ALLOC: Memory allocation related
    error., Code: 1002`, which the usual decomposition of RMSNorm gives.

    ## Use instead

    Run with `--graph`, whose rules recognize such forms. Where none fires, halve the graph
    until the part that fails is found.

    ## Evidence

    The compiler and the emulator, run on this machine by `--prove`; the message is their own. A
    graph that takes longer than `--timeout` is not decided: that is a warning, and the next one is
    tried.
    """

    code = "L302"
    name = "compile-failed"
    evidence = "proved"
    known_by = "onnxruntime-qnn, run by lint"
