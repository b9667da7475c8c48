"""A checkpoint of another depth, made of the base's files: names change, bytes are copied.

Tensors between the blocks that transformers ignores on loading, such as a block for multi-token
prediction, are left out: their position would be another block's.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.names.disk_names import read_disk_names
from surgery.plan.depth.build_check import read_depth
from surgery.plan.planner import Plan
from surgery.storage.safetensors.checkpoint import Progress
from surgery.storage.safetensors.header import StoredTensor, tensor_bytes
from surgery.storage.safetensors.shards import Shard, make_shards, write_shards
from surgery.storage.safetensors.writer import NewTensor


def depth_config(plan: Plan) -> bytes:
    """Return the content of config.json."""
    assert plan.files is not None
    config = read_depth(plan.files, plan.anatomy, plan.depth)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def depth_shards(plan: Plan) -> list[Shard]:
    """Return the weight files of the plan's depth; only headers are read."""
    return make_shards(_tensors(plan))


def write_depth(plan: Plan, folder: Path, progress: Progress | None) -> None:
    """Write the weights of the plan's depth to a folder.

    Raises:
        SurgeryError: A302 to A304 for the disk, M201 to M208 for the base's files.
    """
    write_shards(depth_shards(plan), folder, progress)


def _tensors(plan: Plan) -> Iterator[NewTensor]:
    """Every tensor of the new checkpoint: outside the blocks, then block by block."""
    assert plan.files is not None
    stored = read_disk_names(plan.files, plan.anatomy)
    stored_tensors = stored.checkpoint.tensors
    memory = stored.disk_to_memory()
    blocks = _by_block(plan, memory)
    index = _index_of_positions(blocks, plan)
    among = ".".join(blocks[0][0].split(".")[:index])
    for name, tensor in stored_tensors.items():
        if memory[name] is None and name.startswith(f"{among}."):
            continue
        if not (memory[name] or "").startswith(f"{plan.anatomy.blocks_path}."):
            yield NewTensor(name, tensor.dtype, tensor.shape, tensor)
    for position, slot in enumerate(plan.depth):
        zeros = slot.zeros
        if not zeros <= {memory[name] for name in blocks[slot.source]}:
            raise SurgeryError(
                diagnostic("P219.conversion", source=plan.anatomy.source, key="model")
            )
        for name in blocks[slot.source]:
            parts = name.split(".")
            parts[index] = str(position)
            yield _renamed(stored_tensors[name], ".".join(parts), silent=memory[name] in zeros)


def _renamed(tensor: StoredTensor, name: str, *, silent: bool) -> NewTensor:
    size = tensor_bytes(tensor.dtype, tensor.shape)
    return NewTensor(name, tensor.dtype, tensor.shape, partial(bytes, size) if silent else tensor)


def _by_block(plan: Plan, memory: dict[str, str | None]) -> dict[int, list[str]]:
    """Names on disk of each block's tensors, in order, by the block's index in the base."""
    prefix = f"{plan.anatomy.blocks_path}."
    blocks: dict[int, list[str]] = {block: [] for block in range(plan.anatomy.count)}
    for name, becomes in memory.items():
        if becomes and becomes.startswith(prefix):
            blocks[int(becomes.removeprefix(prefix).partition(".")[0])].append(name)
    return blocks


def _index_of_positions(blocks: dict[int, list[str]], plan: Plan) -> int:
    """Index of the block's position among the parts of a tensor name, split at dots."""
    named = [(str(block), name.split(".")) for block, names in blocks.items() for name in names]
    for index in range(max(len(parts) for _, parts in named)):
        if all(parts[index : index + 1] == [block] for block, parts in named):
            return index
    raise SurgeryError(diagnostic("P218.names", source=plan.anatomy.source, key="model"))
