"""Random numbers that are computed from their position in the sequence, on any device, without those before them."""

from __future__ import annotations

import hashlib

from torch import Tensor


def random_bits(counter: Tensor, key: int | Tensor) -> Tensor:
    """The numbers that SplitMix64, started with the key, draws at these positions; no two positions draw the same.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17. int64 products wrap
    around as its unsigned ones do, on every device alike.

    Args:
        counter: int64, positions from 0.
        key: of 64 bits; or several, int64 of a shape that broadcasts with the counter's.

    Returns:
        int64, all 64 bits random.
    """
    started = (counter + 1).mul_(_signed(0x9E3779B97F4A7C15))
    bits = started.add_(_signed(key)) if isinstance(key, int) else started + key
    bits = _mixed(bits, 30).mul_(_signed(0xBF58476D1CE4E5B9))
    bits = _mixed(bits, 27).mul_(_signed(0x94D049BB133111EB))
    return _mixed(bits, 31)


def key_of(*parts: int | str) -> int:
    """A key, int64, for what these numbers and names say: the same in every process and on every machine."""
    text = "|".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


def _mixed(bits: Tensor, shift: int) -> Tensor:
    """Exclusive or of the bits with themselves shifted down, without the copies of the sign that `>>` shifts in."""
    return bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def _signed(unsigned: int) -> int:
    """The int64 with the same 64 bits."""
    return (unsigned + (1 << 63)) % (1 << 64) - (1 << 63)
