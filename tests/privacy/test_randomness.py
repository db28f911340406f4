"""Bounds of six standard deviations: an error rate below 1e-8 per test where the source is not seeded."""

import hashlib
import inspect
import math
import os

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from privacy.randomness import BYTES_PER_KEY, OsRandom, Random, SeededRandom

SOURCES = [OsRandom(), SeededRandom(7, "tests")]
each_source = pytest.mark.parametrize("random", SOURCES, ids=["os", "seeded"])


@each_source
@pytest.mark.statistical
def test_poisson_sampling_takes_each_index_with_the_given_rate(random: Random) -> None:
    count, rate = 400_000, 0.3
    sample = random.poisson_sample(count, rate)
    assert abs(len(sample) - rate * count) < 6 * math.sqrt(count * rate * (1 - rate))
    assert abs(sample.mean() - count / 2) < 6 * count / math.sqrt(12 * rate * count)


@each_source
@pytest.mark.statistical
def test_two_poisson_samples_are_independent(random: Random) -> None:
    count, rate = 400_000, 0.2
    both = np.intersect1d(random.poisson_sample(count, rate), random.poisson_sample(count, rate))
    assert abs(len(both) - rate**2 * count) < 6 * math.sqrt(count * rate**2)


@each_source
def test_a_poisson_sample_is_sorted_int64_without_repetition(random: Random) -> None:
    sample = random.poisson_sample(1000, 0.5)
    assert sample.dtype == np.int64
    assert (np.diff(sample) > 0).all()


@each_source
def test_rate_one_takes_everybody_and_rate_zero_nobody(random: Random) -> None:
    assert random.poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert random.poisson_sample(5, 0.0).tolist() == []
    assert random.poisson_sample(0, 0.5).tolist() == []


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate={rate}"):
        OsRandom().poisson_sample(10, rate)


def test_the_largest_rate_below_one_still_fits_the_threshold() -> None:
    assert len(OsRandom().poisson_sample(1000, 1.0 - 2.0**-53)) == 1000


@each_source
@pytest.mark.statistical
def test_randbelow_is_uniform(random: Random) -> None:
    counts = np.bincount([random.randbelow(7) for _ in range(14_000)], minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-8


@each_source
def test_randbelow_reaches_past_machine_integers(random: Random) -> None:
    draws = [random.randbelow(10**40) for _ in range(50)]
    assert 10**38 < max(draws) < 10**40
    assert random.randbelow(1) == 0


def test_randbelow_refuses_an_empty_range() -> None:
    with pytest.raises(ValueError, match="bound=0"):
        OsRandom().randbelow(0)


@each_source
@pytest.mark.statistical
def test_every_digit_of_the_words_is_a_fair_coin(random: Random) -> None:
    words = random.words(100_000)
    assert words.dtype == np.uint64
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).sum(axis=0, dtype=np.int64)
    assert abs(ones - 50_000).max() < 6 * math.sqrt(25_000)


@each_source
def test_words_belong_to_the_caller_alone(random: Random) -> None:
    first = random.words(4)
    kept = first.copy()
    random.words(4)[:] = 0
    assert (first == kept).all()
    assert random.words(0).shape == (0,)


@each_source
def test_a_negative_number_of_words_is_refused(random: Random) -> None:
    with pytest.raises(ValueError, match="count=-1"):
        random.words(-1)


def test_the_stream_does_not_depend_on_the_pieces_in_which_it_is_read() -> None:
    count = 3 * BYTES_PER_KEY // 8 + 5
    whole, pieces = SeededRandom(4).words(count), SeededRandom(4)
    parts = [pieces.words(size) for size in (1, BYTES_PER_KEY // 8, count - 1 - BYTES_PER_KEY // 8)]
    assert (whole == np.concatenate(parts)).all()


def test_a_key_serves_so_many_bytes_and_then_another_one_follows() -> None:
    words = SeededRandom(4).words(BYTES_PER_KEY // 4)
    first, second = words.reshape(2, -1)
    key = hashlib.sha256(b"concord/seeded-random/v1\0" + (1).to_bytes(8, "big") + b"4").digest()
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    stream = np.frombuffer(cipher.update(bytes(2 * BYTES_PER_KEY)), dtype="<u8").reshape(2, -1)
    assert (first == stream[0]).all()
    assert not (second == stream[1]).any()


def test_no_seed_and_no_key_can_be_given_to_the_source_of_real_releases() -> None:
    assert list(inspect.signature(OsRandom).parameters) == []
    with pytest.raises(TypeError):
        OsRandom(7)  # type: ignore[call-arg]


def test_a_seed_and_its_labels_fix_every_draw() -> None:
    once, again = SeededRandom(1, "site", "3"), SeededRandom(1, "site", "3")
    assert once.poisson_sample(100, 0.5).tolist() == again.poisson_sample(100, 0.5).tolist()
    assert once.randbelow(10**9) == again.randbelow(10**9)
    assert (once.words(9) == again.words(9)).all()
    assert torch.equal(
        torch.rand(9, generator=once.torch_generator()),
        torch.rand(9, generator=again.torch_generator()),
    )


@pytest.mark.parametrize("other", [SeededRandom(2, "ab"), SeededRandom(1, "a", "b"), OsRandom()])
def test_another_seed_or_label_gives_other_draws(other: Random) -> None:
    assert SeededRandom(1, "ab").randbelow(2**64) != other.randbelow(2**64)


def test_seeded_draws_are_the_same_on_every_machine() -> None:
    random = SeededRandom(42, "vector")
    assert random.randbelow(2**64) == 5905944587468273531
    assert random.poisson_sample(20, 0.3).tolist() == [1, 4, 11, 12, 18]
    assert random.words(2 * BYTES_PER_KEY // 8)[-1] == 7983068108852437660


@each_source
def test_each_torch_generator_is_another(random: Random) -> None:
    first, second = random.torch_generator(), random.torch_generator()
    assert not torch.equal(torch.rand(8, generator=first), torch.rand(8, generator=second))


def test_a_torch_generator_is_not_one_of_the_few_that_a_seed_reaches() -> None:
    words = OsRandom().torch_generator().get_state().numpy()[24 : 24 + 8 * 624].view("<u8")
    by_seed = torch.Generator().manual_seed(int(words[0])).get_state().numpy()[24 : 24 + 8 * 624]
    assert words[1] != by_seed.view("<u8")[1]


@pytest.mark.statistical
def test_a_torch_generator_draws_uniform_numbers() -> None:
    draws = torch.rand(100_000, generator=SeededRandom(5).torch_generator())
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_repeat_the_draws_of_its_parent() -> None:
    random = OsRandom()
    random.randbelow(2)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, random.randbelow(2**64).to_bytes(8, "big"))
        os._exit(0)
    os.waitpid(child, 0)
    assert int.from_bytes(os.read(reader, 8), "big") != random.randbelow(2**64)
    os.close(reader)
    os.close(writer)
