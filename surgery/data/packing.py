"""Several rows in one that don't attend to each other: attention is separated by positions.

transformers' masks recognize such rows by restarting `position_ids` without an `attention_mask`,
for every kind of attention (`masking_utils.find_packed_sequence_indices`).
"""

from collections.abc import Iterable


def pack(lengths: Iterable[int], capacity: int) -> list[tuple[int, int]]:
    """Return first and last index of each packed row: next-fit, which keeps the order.

    Args:
        lengths: Tokens of each row, none above `capacity`.
        capacity: Maximum length of a packed row, in tokens.
    """
    packs: list[tuple[int, int]] = []
    first, end, filled = 0, 0, 0
    for length in lengths:
        if filled + length > capacity:
            packs.append((first, end))
            first, filled = end, 0
        end, filled = end + 1, filled + length
    return [*packs, (first, end)] if end > first else packs
