"""Several rows in one, none of them seeing another: attention is cut by positions that start anew.

transformers' masks know such rows by `position_ids` without an `attention_mask`, for every kind of
attention (`masking_utils.find_packed_sequence_indices`).
"""

from collections.abc import Iterable


def pack(lengths: Iterable[int], capacity: int) -> list[tuple[int, int]]:
    """Return where each packed row begins and ends: next-fit, which keeps the order.

    Args:
        lengths: Tokens of each row, none above `capacity`.
        capacity: Tokens of a packed row, at most.
    """
    packs: list[tuple[int, int]] = []
    first, end, filled = 0, 0, 0
    for length in lengths:
        if filled + length > capacity:
            packs.append((first, end))
            first, filled = end, 0
        end, filled = end + 1, filled + length
    return [*packs, (first, end)] if end > first else packs
