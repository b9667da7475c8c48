"""The start of LoRA's A: frozen numbers from a generator that this file writes out by hand."""

import hashlib
import math
import struct
from itertools import count, islice
from statistics import NormalDist

import numpy as np
import pytest

from surgery.operations.edits import AddedTensor
from surgery.operations.initial_values import initial_value, kaiming_uniform, truncated_normal

MODULE = "model.layers.0.self_attn.q_proj"
SHAPE = (8, 128)
WORD = 2**64 - 1
GOLDEN = [
    "-0x1.1336ca0000000p-6",
    "-0x1.2f5a520000000p-4",
    "-0x1.7e63ee0000000p-5",
    "0x1.63761c0000000p-4",
]
GOLDEN_SHA256 = "e8c8d95674f11b00fbf1642cb2ceabb9de4b20346f8742292bb96c1ff044732c"


def philox_words(key: tuple[int, int], start: int = 1):
    """Philox4x64-10 of Salmon et al. (SC11, section 3.3); NumPy counts from 1."""
    for counter in count(start):
        x, k = [counter, 0, 0, 0], list(key)
        for _ in range(10):
            first, second = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
            x = [
                (second >> 64) ^ x[1] ^ k[0],
                second & WORD,
                (first >> 64) ^ x[3] ^ k[1],
                first & WORD,
            ]
            k = [(k[0] + 0x9E3779B97F4A7C15) & WORD, (k[1] + 0xBB67AE8584CAA73B) & WORD]
        yield from x


def slow_start(seed: int, module: str, shape: tuple[int, int]) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}\n{module}".encode()).digest()
    words = islice(philox_words(struct.unpack("<QQ", digest[:16])), math.prod(shape))
    bound = np.float32(1 / math.sqrt(shape[1]))
    units = [np.float32(2 * (word >> 40) / 2**24 - 1) for word in words]
    return np.array([unit * bound for unit in units], np.float32).reshape(shape)


def test_plain_implementation_gives_the_published_answer() -> None:
    """Random123's tests/kat_vectors, philox4x64 10: key and counter of zeros."""
    found = list(islice(philox_words((0, 0), start=0), 4))
    assert found == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


def test_start_has_the_frozen_numbers() -> None:
    """Adapters made by older versions must be reproducible: never change these."""
    found = kaiming_uniform(0, MODULE, SHAPE)
    assert [value.hex() for value in found[0, :4].tolist()] == GOLDEN
    assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest() == GOLDEN_SHA256


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize("shape", [SHAPE, (3, 5), (1, 1)])
def test_start_equals_a_plain_implementation(seed: int, shape: tuple[int, int]) -> None:
    found = kaiming_uniform(seed, MODULE, shape)
    assert found.dtype == np.float32
    assert found.shape == shape
    assert found.tobytes() == slow_start(seed, MODULE, shape).tobytes()


def test_start_fills_its_range_evenly() -> None:
    unit = kaiming_uniform(0, MODULE, (64, 1024)) * math.sqrt(1024)
    assert np.abs(unit).max() <= 1
    counts, _ = np.histogram(unit, bins=16, range=(-1, 1))
    assert np.abs(counts / unit.size * 16 - 1).max() < 0.06
    assert abs(unit.mean()) < 0.01
    assert len(np.unique(unit)) > 0.99 * unit.size


def test_start_differs_by_seed_and_module() -> None:
    others = [(0, MODULE), (1, MODULE), (0, MODULE.replace("q", "k")), (10, MODULE[1:])]
    starts = [kaiming_uniform(seed, module, SHAPE) for seed, module in others]
    assert len({start.tobytes() for start in starts}) == len(others)
    for other in starts[1:]:
        assert abs(np.corrcoef(starts[0].ravel(), other.ravel())[0, 1]) < 0.1


LEARNER = "model.layers.0.self_attn.learner.visual.q.A"


def slow_normal(seed: int, module: str, shape: tuple[int, int]) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}\n{module}".encode()).digest()
    words = philox_words(struct.unpack("<QQ", digest[:16]))
    drawn = (word >> 16 * position & 0xFFFF for word in words for position in range(4))
    middles = ((number + 0.5) / 65536 for number in islice(drawn, math.prod(shape)))
    return np.array([NormalDist(0, 0.02).inv_cdf(p) for p in middles], np.float32).reshape(shape)


@pytest.mark.parametrize("shape", [(4, 32), (3, 5), (1, 1)])
def test_normal_start_equals_a_plain_implementation(shape: tuple[int, int]) -> None:
    found = truncated_normal(7, LEARNER, shape)
    assert found.tobytes() == slow_normal(7, LEARNER, shape).tobytes()


def test_normal_start_has_the_frozen_numbers() -> None:
    found = truncated_normal(0, LEARNER, (64, 128))
    digest = hashlib.sha256(found.astype("<f4").tobytes()).hexdigest()
    assert digest == "a9f3a8380dbcd934671450b39327a48a1c266b3189ad16663121868c05dc00be"


def test_normal_start_is_normal() -> None:
    unit = truncated_normal(0, LEARNER, (64, 2048)).astype(float) / 0.02
    assert abs(unit.mean()) < 0.01
    assert abs(unit.std() - 1) < 0.01
    assert 4 < np.abs(unit).max() < 4.33
    for z in (-2, -1, 0, 1, 2):
        assert abs((unit < z).mean() - NormalDist().cdf(z)) < 0.005


def test_start_of_a_tensor_is_that_of_its_module() -> None:
    pair = AddedTensor(f"{MODULE}.lora_A.weight", SHAPE, "F32", "kaiming")
    assert initial_value(3, pair).tobytes() == kaiming_uniform(3, MODULE, SHAPE).tobytes()
    learner = AddedTensor(f"{LEARNER}.weight", SHAPE, "F32", "normal")
    assert initial_value(3, learner).tobytes() == truncated_normal(3, LEARNER, SHAPE).tobytes()
    assert not initial_value(3, AddedTensor("x.bias", (2,), "F32", "zeros")).any()
