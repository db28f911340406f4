"""Worker processes: the same results, no secrets in their arguments, no workers where they do not pay."""

from pathlib import Path

import numpy as np
import psutil
import pytest
from gmpy2 import mpz

from privacy.paillier.ciphertexts import signed
from privacy.paillier.decrypt import decrypt
from privacy.paillier.encrypt import encrypt, encrypt_as_holder, obfuscators
from privacy.paillier.fixed_base import best_comb, fixed_powers
from privacy.paillier.inner_product import inner_products
from privacy.paillier.threshold import combine, deal, partial_decryptions
from privacy.paillier.workers import MOST_WORKERS, WORTHWHILE_SECONDS, Workers
from tests.privacy.paillier_keys import PAIRS

PAIR = PAIRS["subgroup-1152"]
PUBLIC = PAIR.public


def with_place(items, offset):
    return [item + offset for item in items]


def process_of(items):
    return [psutil.Process().pid for _ in items]


def environment_and_arguments(items):
    process = psutil.Process()
    shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    return [shown + Path(f"/proc/{process.pid}/environ").read_bytes() for _ in items]


def fails(items):
    raise ValueError("as it would here")


@pytest.fixture(scope="module")
def two():
    with Workers(2) as workers:
        yield workers


@pytest.mark.processes
@pytest.mark.parametrize("count", [0, 1, 2, 3, 17])
def test_results_come_in_the_order_of_the_items(two, count):
    assert two.spread(with_place, list(range(count)), 100) == [100 + i for i in range(count)]


@pytest.mark.processes
def test_work_is_done_elsewhere_and_by_no_more_than_asked_for(two):
    found = set(two.spread(process_of, list(range(40))))
    assert psutil.Process().pid not in found
    assert 1 <= len(found) <= 2


@pytest.mark.processes
def test_fixed_powers_are_bit_for_bit_those_of_one_process(two):
    exponents = [bytes([number]) * 72 for number in range(20)]
    comb = best_comb(20, exponent_bits=576, modulus_bits=2304)
    facts = (PUBLIC.base, PUBLIC.square, comb)
    assert two.spread(fixed_powers, exponents, *facts) == fixed_powers(exponents, *facts)


@pytest.mark.processes
def test_ciphertexts_made_by_workers_open_by_workers(two):
    plaintexts = [mpz(number) for number in range(30)]
    assert decrypt(encrypt(plaintexts, PUBLIC, two), PAIR, two) == plaintexts
    assert decrypt(encrypt_as_holder(plaintexts, PAIR, two), PAIR, two) == plaintexts


@pytest.mark.processes
def test_workers_never_draw_the_same_obfuscators(two):
    assert len(set(obfuscators(40, PUBLIC, two))) == 40


@pytest.mark.processes
def test_partial_decryptions_are_bit_for_bit_those_of_one_process(two):
    ciphertexts = encrypt([mpz(5)] * 7, PUBLIC)
    shares = deal(PAIR, threshold=2, count=2)
    by_workers = {
        point: partial_decryptions(ciphertexts, share, PUBLIC, two)
        for point, share in enumerate(shares, start=1)
    }
    assert by_workers[1] == partial_decryptions(ciphertexts, shares[0], PUBLIC)
    assert combine(by_workers, PUBLIC, threshold=2, count=2) == [5] * 7


@pytest.mark.processes
def test_inner_products_by_workers_open_to_the_same(two):
    rows = np.arange(-15, 15).reshape(6, 5)
    encrypted = encrypt([mpz(value) for value in range(5)], PUBLIC)
    products = inner_products(rows, encrypted, PUBLIC, two)
    opened = [signed(plaintext, PUBLIC.n) for plaintext in decrypt(products, PAIR)]
    assert opened == (rows @ np.arange(5)).tolist()


@pytest.mark.processes
def test_a_worker_shows_no_secret_in_its_arguments_or_environment(two):
    secret = mpz(PAIR.private.p)
    decrypt(encrypt([mpz(1)] * 4, PUBLIC), PAIR, two)
    shown = b"".join(two.spread(environment_and_arguments, list(range(8))))
    size = (secret.bit_length() + 7) // 8
    forms = [str(secret).encode(), hex(secret)[2:].encode(), secret.to_bytes(size, "big")]
    assert b"spawn_main" in shown
    assert not any(form in shown for form in forms)


@pytest.mark.processes
def test_an_error_in_a_worker_is_raised_here(two):
    with pytest.raises(ValueError, match="as it would here"):
        two.spread(fails, [1, 2, 3])


@pytest.mark.processes
def test_workers_end_with_their_block():
    with Workers(2) as workers:
        found = set(workers.spread(process_of, list(range(8))))
    assert not any(psutil.pid_exists(pid) for pid in found)


@pytest.mark.parametrize("seconds", [0.0, WORTHWHILE_SECONDS / 2])
def test_little_work_starts_no_process(seconds):
    with Workers.for_seconds(seconds) as workers:
        assert workers.spread(process_of, [1, 2, 3]) == [psutil.Process().pid] * 3


@pytest.mark.parametrize("count", [-1, MOST_WORKERS + 1])
def test_a_number_of_workers_beyond_the_bound_is_refused(count):
    with pytest.raises(ValueError, match="workers"):
        Workers(count)
