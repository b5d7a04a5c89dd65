"""Counter-based random streams, the only source of randomness.

(seed, purpose, coordinates) determine a stream completely. So the numbers drawn for a sample are
the same in every process, in any order and after any interruption. `STREAM_VERSION` is stored with
each run; increment it when the numbers drawn change.
"""

import hashlib

import numpy as np
import torch

STREAM_VERSION = 1


def _key(seed: int, purpose: str) -> int:
    """Returns 128 bits that differ for every (seed, purpose)."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def stream(seed: int, purpose: str, *coordinates: int) -> np.random.Generator:
    """Returns the generator of a stream.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, e.g. `"augment"`.
        coordinates: Up to three integers in 0..2**64, e.g. the number of the sample. The others
            are 0. They are the high words of Philox's 256-bit counter; the low word counts the
            draws.
    """
    if len(coordinates) > 3:
        raise ValueError(f"a stream has at most three coordinates, not {coordinates}")
    counter = np.zeros(4, dtype=np.uint64)
    counter[1 : 1 + len(coordinates)] = coordinates
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))


def torch_generator(seed: int, purpose: str) -> torch.Generator:
    """Returns a CPU torch generator for (seed, purpose), to initialise parameters."""
    return torch.Generator().manual_seed(_key(seed, purpose) & (2**63 - 1))
