import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox import rng
from multibox.rng import stream, torch_generator

words = st.integers(0, 2**64 - 1)
seeds = st.integers(0, 2**63 - 1)
purposes = st.sampled_from(["augment", "order", "drawn", "initialise"])
addresses = st.tuples(seeds, purposes, st.tuples(words, words, words))


def draws(seed: int, purpose: str, *coordinates: int) -> list[int]:
    return stream(seed, purpose, *coordinates).bit_generator.random_raw(4).tolist()


def test_the_numbers_are_those_of_version_1() -> None:
    """Who changes a number here bumps `STREAM_VERSION`: it is part of what a run is."""
    assert rng.STREAM_VERSION == 1
    assert draws(0, "augment")[:2] == [4157490465792343736, 14798976968045596813]
    assert draws(0, "augment", 1)[:2] == [13701238930957188826, 16811899444356144719]
    far = 7, "order", 5, 3, 2**64 - 1
    assert draws(*far)[:2] == [8061216442146689865, 6349793505248830244]
    assert stream(*far).random() == 0.43699941897256545
    assert stream(*far).permutation(8).tolist() == [0, 2, 7, 3, 5, 6, 4, 1]
    generator = torch_generator(0, "initialise")
    assert generator.initial_seed() == 6285212201710903365
    expected = [0.7165886759757996, 0.9444185495376587, 0.4828198552131653]
    assert torch.empty(3).uniform_(generator=generator).tolist() == expected


@settings(deadline=None)
@given(addresses, addresses)
def test_an_address_is_a_stream_and_another_is_another(
    first: tuple[int, str, tuple[int, ...]], second: tuple[int, str, tuple[int, ...]]
) -> None:
    (seed, purpose, coordinates), (other_seed, other_purpose, others) = first, second
    numbers = draws(seed, purpose, *coordinates)
    other_numbers = draws(other_seed, other_purpose, *others)
    assert (numbers == other_numbers) == (first == second)
    assert draws(seed, purpose, *coordinates) == numbers


def test_neighbouring_addresses_differ_in_every_part() -> None:
    found = {
        tuple(draws(seed, purpose, *coordinates))
        for seed in (0, 1, 10)
        for purpose in ("a", "b", "0:a")
        for coordinates in np.ndindex(4, 4, 4)
    }
    assert len(found) == 3 * 3 * 64


def test_streams_do_not_hear_each_other() -> None:
    alone = [stream(3, "augment", sample).random(5) for sample in range(4)]
    generators = [stream(3, "augment", sample) for sample in reversed(range(4))]
    np.random.default_rng(0).random(7)
    torch.rand(7)
    together = np.array([[g.random() for g in generators] for _ in range(5)])
    for sample, expected in enumerate(alone):
        assert np.array_equal(together[:, 3 - sample], expected)


def test_the_coordinates_leave_the_low_word_to_the_draws() -> None:
    generator = stream(0, "augment", 5, 6)
    generator.random(1000)
    assert generator.bit_generator.state["state"]["counter"].tolist() == [250, 5, 6, 0]


def test_first_numbers_of_consecutive_streams_are_uniform_and_independent() -> None:
    first, second = np.array([stream(1, "augment", n).random(2) for n in range(2000)]).T
    assert np.abs(np.sort(first) - np.linspace(0, 1, 2000)).max() < 0.05
    for a, b in ((first, second), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_an_address_has_three_coordinates_that_fit_a_word() -> None:
    with pytest.raises(ValueError, match="three coordinates"):
        stream(0, "augment", 1, 2, 3, 4)
    for coordinate in (-1, 2**64):
        with pytest.raises(OverflowError):
            stream(0, "augment", coordinate)


def test_torch_generators_differ_by_seed_and_purpose_and_are_their_own() -> None:
    seeds = {torch_generator(*at).initial_seed() for at in ((0, "a"), (1, "a"), (0, "b"))}
    assert len(seeds) == 3
    before = torch.get_rng_state()
    torch.empty(3).uniform_(generator=torch_generator(0, "a"))
    assert torch.equal(torch.get_rng_state(), before)
