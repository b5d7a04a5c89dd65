"""The only source of randomness: counter-based streams.

A stream is addressed by (seed, purpose, coordinates) and by nothing else, so that any sample's
draws are the same in every process, in any order and after any interruption. `STREAM_VERSION`
is part of a run's configuration: a change of how numbers are drawn bumps it.
"""

import hashlib

import numpy as np
import torch

STREAM_VERSION = 1


def _key(seed: int, purpose: str) -> int:
    """128 bits that differ for every (seed, purpose)."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def stream(seed: int, purpose: str, *coordinates: int) -> np.random.Generator:
    """Returns the generator at an address.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, e.g. `"augment"`.
        coordinates: Up to three integers in 0..2**64, e.g. the sample's number; those not given
            are 0. They are the high words of Philox's 256-bit counter; the low word is left for
            the draws.
    """
    if len(coordinates) > 3:
        raise ValueError(f"a stream has at most three coordinates, not {coordinates}")
    counter = np.zeros(4, dtype=np.uint64)
    counter[1 : 1 + len(coordinates)] = coordinates
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))


def torch_generator(seed: int, purpose: str) -> torch.Generator:
    """Returns a CPU torch generator at an address, for filling parameters."""
    return torch.Generator().manual_seed(_key(seed, purpose) & (2**63 - 1))
