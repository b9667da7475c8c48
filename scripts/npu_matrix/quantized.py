"""Weights of 8, 4 and 2 bits, beside activations of 16, 8, or in float."""

from typing import Any

import ml_dtypes
import numpy as np

from npu_matrix.case import Case, Known

_WIDTH, _OUT, _BLOCK = 128, 64, 64
_SCALES = {"uint16": 8 / 65535, "uint8": 8 / 255}
_MIDDLES = {"uint16": 32768, "uint8": 128}
_RANGES = {
    "int8": (-127, 127),
    "uint8": (0, 255),
    "int4": (-7, 7),
    "uint4": (0, 15),
    "int2": (-1, 1),
}
_MATMUL = "c = MatMul(b, d)"
_GEMM = "c = Gemm(b, d)"


def product(
    name: str,
    weights: str,
    activations: str = "uint16",
    *,
    expected: Known = "accepted",
    zero: int = 0,
    grain: str = "tensor",
    node: str = _MATMUL,
) -> Case:
    """Return a matrix product with a quantized weight.

    Args:
        name: of the case.
        weights: their type, such as `int4`.
        activations: their type; empty for float.
        expected: what the compiler makes of it.
        zero: zero point of the weights.
        grain: whether a `tensor`, a `channel` or a `block` of 64 has one scale.
        node: the product itself, of `b` and `d` into `c`.
    """
    how = {"tensor": "", "channel": "<axis = 1>", "block": f"<axis = 0, block_size = {_BLOCK}>"}
    head = f"(float[4,{_WIDTH}] x) => (float[4,{_OUT}] y)"
    weight = f"d = DequantizeLinear{how[grain]}(w, ws, wz)"
    body = f"b = Identity(x) {weight} {node} y = Identity(c)"
    if activations:
        body = f"q = QuantizeLinear(x, s, z) b = DequantizeLinear(q, s, z) {weight} {node} "
        body += "p = QuantizeLinear(c, s, z) y = DequantizeLinear(p, s, z)"
    constants = {**_weights(weights, zero, grain), **_activations(activations)}
    feeds = {"x": _input()}
    op = "Gemm" if node == _GEMM else "MatMul"
    opset = 25 if weights == "int2" else 23
    graph = f"{head} {{ {body} }}"
    return Case(name, graph, expected, op=op, weights=constants, feeds=feeds, opset=opset)


def layer_norm(factor: str, zero: int = 0, expected: Known = "accepted") -> Case:
    """Return a layer norm in 16 bits whose factor is of a type such as `int8`."""
    low, high = _RANGES.get(factor, (0, 65535))
    numbers = np.linspace(low + 1, high, _WIDTH).astype(getattr(ml_dtypes, factor, factor))
    return Case(
        f"LayerNormalization, a factor of {factor}, zero point {zero}",
        f"(float[4,{_WIDTH}] x) => (float[4,{_WIDTH}] y) {{ q = QuantizeLinear(x, s, z) "
        "b = DequantizeLinear(q, s, z) f = DequantizeLinear(w, ws, wz) h = DequantizeLinear(v, vs) "
        "c = LayerNormalization(b, f, h) p = QuantizeLinear(c, s, z) "
        "y = DequantizeLinear(p, s, z) }",
        expected,
        op="LayerNormalization",
        weights={
            "w": numbers,
            "ws": np.array(1 / high, dtype=np.float32),
            "wz": np.array(zero).astype(numbers.dtype),
            "v": np.zeros(_WIDTH, dtype=np.int32),
            "vs": np.array(1e-6, dtype=np.float32),
            **_activations("uint16"),
        },
        feeds={"x": _input()},
    )


def _input() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).uniform(-1, 1, (4, _WIDTH)).astype(np.float32)


def _weights(kind: str, zero: int, grain: str) -> dict[str, Any]:
    """The weight, its scales and its zero points."""
    low, high = _RANGES[kind]
    numbers = np.random.default_rng(0).integers(low, high + 1, (_WIDTH, _OUT))
    shape = {"tensor": (), "channel": (_OUT,), "block": (_WIDTH // _BLOCK, _OUT)}[grain]
    scales = np.full(shape, 0.5 / high, dtype=np.float32)
    zeros = np.full(shape, zero)
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    return {"w": numbers.astype(dtype), "ws": scales, "wz": zeros.astype(dtype)}


def _activations(kind: str) -> dict[str, Any]:
    if not kind:
        return {}
    return {
        "s": np.array(2 * _SCALES[kind], dtype=np.float32),
        "z": np.array(_MIDDLES[kind], dtype=kind),
    }


def quantized_cases() -> list[Case]:
    """Return a product of each kind, and other operators."""
    return [
        product("W8A8, int8", "int8", "uint8"),
        product("W8A16, int8", "int8"),
        product("W8A16, uint8 with a zero point", "uint8", zero=130),
        product("W8A16, int8 with a zero point", "int8", zero=5),
        product("W4A16, int4", "int4"),
        product("W4A16, int4 with a zero point", "int4", zero=2, expected="wrong"),
        product("W4A16, uint4 with zero point 8", "uint4", zero=8),
        product("W4A16, uint4 with zero point 7", "uint4", zero=7),
        product("W4A16, int4, a scale a channel", "int4", grain="channel"),
        product("W4A16, int4, a scale a block of 64", "int4", grain="block"),
        product(
            "W4A8, int4, a scale a block of 64", "int4", "uint8", grain="block", expected="rejected"
        ),
        product("W4A16, int4, Gemm", "int4", node=_GEMM),
        product("W4 beside float, a scale a tensor", "int4", ""),
        product(
            "W4 beside float, a scale a channel", "int4", "", grain="channel", expected="rejected"
        ),
        product("W4 beside float, a scale a block", "int4", "", grain="block", expected="rejected"),
        product(
            "W8 beside float, a scale a channel", "int8", "", grain="channel", expected="rejected"
        ),
        product("W2A16, int2, a scale a channel", "int2", grain="channel", expected="wrong"),
        layer_norm("uint8"),
        layer_norm("uint16", 32768),
        layer_norm("uint16", expected="rejected"),
        layer_norm("int8", expected="rejected"),
        layer_norm("int4", expected="rejected"),
        Case(
            "MatMulNBits, 4 bits in blocks of 32",
            f"(float[1,4,{_WIDTH}] x) => (float[1,4,{_OUT}] y) {{ y = com.microsoft.MatMulNBits"
            f"<K = {_WIDTH}, N = {_OUT}, bits = 4, block_size = 32>(x, w, s) }}",
            weights={
                "w": np.random.default_rng(0).integers(0, 256, (_OUT, 4, 16)).astype(np.uint8),
                "s": np.full((_OUT, 4), 0.01, dtype=np.float32),
            },
        ),
        Case(
            "Conv of 1 by 1, W4A16",
            "(float[1,64,2,2] x) => (float[1,32,2,2] y) { q = QuantizeLinear(x, s, z) "
            "b = DequantizeLinear(q, s, z) d = DequantizeLinear(w, ws, wz) c = Conv(b, d) "
            "p = QuantizeLinear(c, s, z) y = DequantizeLinear(p, s, z) }",
            op="Conv",
            weights={
                "w": np.random.default_rng(0)
                .integers(-7, 8, (32, 64, 1, 1))
                .astype(ml_dtypes.int4),
                "ws": np.array(0.05, dtype=np.float32),
                "wz": np.array(0, dtype=ml_dtypes.int4),
                **_activations("uint16"),
            },
        ),
    ]
