"""Rule L300: nodes that the compiler leaves to the CPU."""

from surgery.lint.base import Rule


class RefusedByCompiler(Rule):
    """Nodes that Qualcomm's compiler won't take, with its own reason.

    ## Why is it bad?

    What it refuses runs on the CPU, and splits the graph into parts that wait for each other; or
    the graph doesn't compile at all.

    ## Example

    `NonZero output shape must be static. Set shape to [rank, num_elements].`

    ## Use instead

    The operator's static form. The finding names the nodes, the module that made them and the place
    in the recipe; the rules of `--graph` say for each operator what to do instead.

    ## Evidence

    The compiler, run on this machine by `--prove` for exactly the target's chip. A graph counts as
    accepted where it becomes one context and that context names the chip.
    """

    code = "L300"
    name = "refused-by-compiler"
    evidence = "proved"
    known_by = "onnxruntime-qnn, run by lint"
