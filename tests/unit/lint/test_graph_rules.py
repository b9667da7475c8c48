"""Every rule on graphs against its fixture, and every fixture against Qualcomm's compiler."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from surgery.lint.base import GraphRule, known_rules
from surgery.lint.onnx.reader import subject_of
from surgery.lint.rule_runner import lint_graph
from surgery.npu.qualcomm.agreement import agreement
from surgery.npu.qualcomm.arrays import read_arrays, write_arrays
from surgery.npu.qualcomm.compiler import run_tasks
from surgery.npu.qualcomm.cpu_reference import reference
from surgery.npu.qualcomm.toolchain import why_not
from surgery.npu.qualcomm.workers.task import Task
from surgery.npu.target import load_target

FOLDER = Path(__file__).parents[2] / "rules" / "graph"
RULES = {name: rule for name, rule in known_rules().items() if isinstance(rule, GraphRule)}
LARGE = 2**28
"""Bytes from which a weight is a hole in a file."""


@dataclass(frozen=True)
class Case:
    """A graph, and what its rule says of it; nothing where it passes."""

    rule: str
    name: str
    graph: str
    target: str = "snapdragon"
    says: str = ""
    severity: str = "error"
    compiler: str = ""
    weights: dict = field(default_factory=dict)
    opset: int = 23
    opsets: str = ""

    def __str__(self):
        return f"{self.rule}: {self.name}"

    def write(self, folder):
        """Write the graph into a folder, weights of gigabytes as holes."""
        opsets = self.opsets or f'"" : {self.opset}, "com.microsoft" : 1'
        model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]>\n{self.graph}")
        for name, told in self.weights.items():
            model.graph.initializer.append(constant(name, *told, folder=folder))
        file = folder / "graph.onnx"
        onnx.save(model, file)
        return file


def constant(name, kind, shape, fill=None, *, folder):
    """A weight of random numbers, or of one; a large one is a hole in a file beside the graph."""
    number = getattr(onnx.TensorProto, kind.upper())
    size = int(np.prod(shape))
    if 4 * size > LARGE:
        with (folder / "weights.bin").open("wb") as file:
            file.truncate(4 * size)
        tensor = onnx.TensorProto(name=name, data_type=number, dims=shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        return tensor
    low, high = {"int2": (-2, 2), "int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128)}.get(
        kind, (0, 256)
    )
    drawn = np.random.default_rng(0).integers(low, high, size).tolist()
    return onnx.helper.make_tensor(name, number, shape, drawn if fill is None else [fill] * size)


def cases():
    for file in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        target = content.get("target", "snapdragon")
        for kind in ("fail", "pass"):
            for name, told in content[kind].items():
                whole = {"graph": told} if isinstance(told, str) else told
                yield Case(file.stem, f"{kind}: {name}", **{"target": target, **whole})


CASES = list(cases())


def test_every_rule_has_a_fixture_with_both_kinds():
    both = {(case.rule, bool(case.says)) for case in CASES}
    assert both == {(name, says) for name in RULES for says in (True, False)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule_says_what_its_fixture_says(case, tmp_path):
    target = load_target(case.target)
    found = list(RULES[case.rule].check(subject_of(case.write(tmp_path)), target))
    if not case.says:
        assert found == []
        return
    meant = [f.severity for f in found if case.says in f.what]
    assert meant == [case.severity], [f.what for f in found]
    assert all(f.why and f.fix and f.known_by and f.target == target.name for f in found)


def test_what_passes_one_rule_is_no_error_of_another(tmp_path):
    faults = {}
    for case in CASES:
        if case.target == "snapdragon" and (not case.says or case.severity != "error"):
            found = lint_graph(subject_of(case.write(tmp_path)), load_target("snapdragon"))
            faults[str(case)] = [f"{f.code} {f.what}" for f in found if f.severity == "error"]
    faults = {case: found for case, found in faults.items() if found}
    assert faults == {}


def feeds_of(file):
    """Numbers for each input; none for a graph that has not one static shape."""
    generator = np.random.default_rng(1)
    feeds = {}
    model = onnx.load(file, load_external_data=False)
    for value in model.graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        sizes = value.type.tensor_type.shape.dim
        if any(not size.HasField("dim_value") for size in sizes):
            return {}
        shape = [size.dim_value for size in sizes]
        drawn = (
            generator.standard_normal(shape) if kind.kind == "f" else generator.random(shape) < 0.5
        )
        feeds[value.name] = np.asarray(drawn).astype(kind)
    return feeds


def asked(case, folder):
    folder.mkdir()
    file = case.write(folder)
    task = Task(model=file, folder=folder / "asked", soc=69, arch=79)
    task.folder.mkdir()
    feeds = feeds_of(file)
    if feeds:
        write_arrays(task.feeds, feeds)
    return task


def verdict(task, answer):
    """accepted, rejected or wrong, as docs/reference/npu-matrix.md has it."""
    if not answer.accepted:
        return "rejected"
    if answer.run_error or not task.outputs.is_file():
        return "wrong"
    wanted = reference(task.model, read_arrays(task.feeds))
    near = agreement(read_arrays(task.outputs), wanted).values()
    return "accepted" if all(one.is_enough for one in near) else "wrong"


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_compiler_agrees_with_every_fixture(tmp_path):
    every = [c for c in CASES if c.target == "snapdragon" and c.compiler != "unasked"]
    tasks = [asked(case, tmp_path / str(number)) for number, case in enumerate(every)]
    found = {}
    for case, task, answer in zip(every, tasks, run_tasks(tasks), strict=True):
        refused = bool(case.says) and case.severity == "error"
        said = verdict(task, answer)
        if refused == (said == "accepted"):
            found[str(case)] = f"{said} {answer.run_error}"
    assert found == {}
