"""Rule L301: a graph that compiles and computes something else."""

from surgery.lint.base import Rule


class WrongNumbers(Rule):
    """A graph that compiles, runs, and whose result is not what it should be.

    ## Why is it bad?

    Nothing fails: the model just answers worse. Compiling alone doesn't show it.

    ## Example

    int4 weights with a zero point compile, and a decoder's logits then have a cosine of 0.874 with
    those of the same quantized graph on the CPU (measured with onnxruntime-qnn 2.7.0).

    ## Use instead

    Compare the outputs that the finding names. Where fp16 is right and a quantized scheme is not,
    look at the quantizer's settings: weights must be symmetric.

    ## Evidence

    The emulator of the NPU, run on this machine by `--prove`: in fp16 against torch, in a quantized
    scheme against the quantized graph on the CPU. An output counts as right with a cosine of 0.9999
    or more, with one of 0.999 where the greatest error is below 2 % of the output's range, and
    where no error is above 6.1e-05, the least normal number of fp16. Below that, a cosine of 0.99
    and errors below 25 % of the range are a warning, which real detectors give on edges of what
    they find; anything else is an error. The inputs are noise, or a picture with words where noise
    leaves an output without a number above 0.05; where nothing helps, a note says that the numbers
    show nothing. The emulator is Qualcomm's; that silicon does the same is not shown.
    """

    code = "L301"
    name = "wrong-numbers"
    evidence = "proved"
    known_by = "onnxruntime-qnn, run by lint"
