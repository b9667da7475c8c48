"""Rule L105: what a plan leaves open that a static graph must fix."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.target import Target


class DynamicShapes(PlanRule):
    """A layout that the recipe leaves open: segments without `runs`, or a number of tiles.

    ## Why is it bad?

    A graph for the NPU has one shape. What the prompt decides has to be fixed before, or there is
    one graph for each layout, each with its own compiled file.

    ## Example

    `surgery lint cogvlm_skip form=segments --target snapdragon`: where the image stands is not
    said. `tiles=4` on a recipe with `vision`: an image is 1 to 5 runs of the vision tower.

    ## Use instead

    Say where images stand: `runs: [[1, 197]]`, the same in every prompt; or `form: blend`, which
    takes the mask as an input. For tiles: one graph of the vision tower that runs once for each
    tile, as the paper deploys it (section 4.2), and prompts filled in chunks of one length.

    ## Evidence

    onnxruntime-qnn 2.7.0 leaves whatever follows a dynamic dimension to the CPU: `Cannot get
    shape`.
    """

    code = "L105"
    name = "dynamic-shapes"
    evidence = "proved"
    known_by = "onnxruntime-qnn 2.7.0 (QAIRT 2.51.0), V79, 2026-11-22"
    severity = "warning"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        experts = subject.plan.experts()
        open_ones = [e for e in experts if e.rule.form == "segments" and not e.rule.runs]
        for operation in dict.fromkeys(edit.operation for edit in open_ones):
            form = f"operations.{operation}.form"
            yield self.finding(
                target,
                f"`{operation}` splits prompts into segments and doesn't say where images stand",
                why="a graph has one layout, so that each needs a graph of its own",
                fix=f"set `operations.{operation}.runs` to [start, end] of each image, such as "
                f"[[1, 197]], or use `{form}: blend`",
                key=f"operations.{operation}.runs",
                edit=(form, "blend"),
            )
        recipe = subject.plan.recipe
        if recipe.vision and recipe.tiles > 1:
            yield self.finding(
                target,
                f"an image is 1 to {recipe.tiles + 1} tiles, and a graph has one shape",
                why="the number of tiles depends on the image",
                fix="run the vision tower's graph once for each tile, as the paper does",
                key="tiles",
                severity="note",
            )
