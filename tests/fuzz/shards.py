"""Fuzz target: tar shards with images, which `predict` reads in place."""

import warnings
from itertools import islice
from pathlib import Path

from fuzz import pictures
from fuzz.choices import TEXTS, Choices, damaged
from fuzz.packed import tar

from multibox.commands.predict import no_addresses
from multibox.commands.prediction.items import read_pixels
from multibox.commands.prediction.tar_shards import list_tar
from multibox.errors import DataError

_NAMES = (
    *("b.jpg", "b.PNG", "b.json", "a.jpg", ".hidden.jpg", "d/b.jpg", "./b.jpg", "/etc/b.jpg"),
    *("../b.jpg", "d/../../b.jpg", "x" * 300 + ".jpg", "d/" * 500 + "b.jpg", "a.jpg/b.jpg", "d"),
)
# More than any archive here has members.
_MOST = 100


def shard(choices: Choices, folder: Path) -> None:
    """Lists a shard, and decodes its images. Only the shard may be opened."""
    seeds = pictures.seeds()
    members = [("a.jpg", seeds[0]), ("a.json", b"{}")]
    for _ in range(choices.below(4)):
        name = choices.pick((*_NAMES, *TEXTS))
        content = choices.pick((choices.pick(seeds), b"", pictures.picture(choices)))
        members.insert(choices.below(len(members) + 1), (name, content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = tar(choices, members)
    path = folder / "s.tar"
    path.write_bytes(damaged(data, choices) if choices.one_in(8) else data)
    refusal: DataError | None = None
    refs = list(islice(list_tar(str(path)), _MOST))
    assert len(refs) < _MOST
    for ref in refs:
        assert ref.address == str(path)
        try:
            pixels = read_pixels(ref, no_addresses)
        except DataError as error:
            refusal = error
        else:
            assert not ref.fault
            assert pixels.ndim == 3
    if refusal is not None:
        raise refusal
