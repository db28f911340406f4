"""Shares of the key: any threshold of them decrypts, and whoever uses another one is caught."""

import itertools

import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.paillier.encrypt import encrypt
from privacy.paillier.partial_proof import (
    is_own_share,
    is_proved,
    proof_bytes,
    prove,
    verification_base,
    verification_keys,
)
from privacy.paillier.threshold import (
    combine,
    deal,
    integer_weights,
    partial_decryptions,
    share_bits,
)
from tests.privacy.paillier_keys import ANSWERS, FULL, PAIRS, SMALL, outside_subgroup

PAIR = PAIRS["djn-half-1152"]
PUBLIC = PAIR.public
SHARES = deal(PAIR, threshold=3, count=5)
PLAINTEXTS = [mpz(0), mpz(1), PUBLIC.n - 1]
CIPHERTEXTS = encrypt(PLAINTEXTS, PUBLIC)
PARTIALS = {
    point: partial_decryptions(CIPHERTEXTS, share, PUBLIC)
    for point, share in enumerate(SHARES, start=1)
}
BITS = share_bits(key_bits=1152, count=5)


def chosen(*points):
    return {point: PARTIALS[point] for point in points}


@pytest.mark.parametrize("case", ANSWERS["ciphertexts"], ids=lambda case: case["key"])
def test_known_shares_give_known_partial_decryptions(case):
    public = PAIRS[case["key"]].public
    found = [
        hex(partial)
        for share in case["shares"]
        for partial in partial_decryptions([mpz(case["ciphertext"], 16)], mpz(share, 16), public)
    ]
    assert found == case["partials"]


@pytest.mark.parametrize("points", [(1, 2), (1, 3), (3, 2)])
@pytest.mark.parametrize("case", ANSWERS["ciphertexts"], ids=lambda case: case["key"])
def test_known_partial_decryptions_combine_to_the_known_plaintext(case, points):
    public = PAIRS[case["key"]].public
    partials = {point: [mpz(case["partials"][point - 1], 16)] for point in points}
    opened = combine(partials, public, threshold=case["threshold"], count=3)
    assert opened == [mpz(case["plaintext"], 16)]


@pytest.mark.parametrize("points", list(itertools.combinations(range(1, 6), 3)))
def test_any_three_of_five_open(points):
    assert combine(chosen(*points), PUBLIC, threshold=3, count=5) == PLAINTEXTS


@pytest.mark.parametrize("name", FULL)
def test_three_of_five_open_what_phe_opens_under_a_full_key(name):
    pair = PAIRS[name]
    ciphertexts = encrypt([pair.public.n - 5], pair.public)
    shares = deal(pair, threshold=3, count=5)
    partials = {
        point: partial_decryptions(ciphertexts, shares[point - 1], pair.public)
        for point in (1, 4, 5)
    }
    opened = combine(partials, pair.public, threshold=3, count=5)
    assert opened == [pair.private.raw_decrypt(int(ciphertexts[0]))] == [pair.public.n - 5]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("threshold", "count"), [(1, 1), (1, 3), (2, 2), (5, 5), (22, 64), (64, 64)]
)
def test_the_last_points_open_for_every_size_of_cohort(name, threshold, count):
    pair = PAIRS[name]
    shares = deal(pair, threshold=threshold, count=count)
    ciphertexts = encrypt([mpz(12345)], pair.public)
    partials = {
        point: partial_decryptions(ciphertexts, shares[point - 1], pair.public)
        for point in range(count - threshold + 1, count + 1)
    }
    assert combine(partials, pair.public, threshold=threshold, count=count) == [12345]
    assert max(share.bit_length() for share in shares) <= share_bits(key_bits=1152, count=count)


def test_a_subgroup_key_shared_out_opens_obfuscators_of_any_kind():
    pair = PAIRS["subgroup-1152"]
    shares = deal(pair, threshold=2, count=2)
    outside = [outside_subgroup(pair)]
    partials = {
        point: partial_decryptions(outside, share, pair.public)
        for point, share in enumerate(shares, start=1)
    }
    assert combine(partials, pair.public, threshold=2, count=2) == [1]


@pytest.mark.parametrize("points", [(), (1,), (1, 2), (1, 2, 3, 4)])
def test_too_few_or_too_many_points_are_refused(points):
    with pytest.raises(ValueError, match="by 3 points in 1 to 5"):
        combine(chosen(*points), PUBLIC, threshold=3, count=5)


@pytest.mark.parametrize("point", [0, 6, -1])
def test_a_point_that_was_not_dealt_is_refused(point):
    with pytest.raises(ValueError, match="by 3 points in 1 to 5"):
        combine({**chosen(1, 2), point: PARTIALS[3]}, PUBLIC, threshold=3, count=5)


def test_the_same_share_under_another_point_is_refused():
    with pytest.raises(ValueError, match="by the shares that were dealt"):
        combine({**chosen(1, 2), 3: PARTIALS[2]}, PUBLIC, threshold=3, count=5)


def test_a_wrong_share_is_refused():
    wrong = partial_decryptions(CIPHERTEXTS, SHARES[2] + 1, PUBLIC)
    with pytest.raises(ValueError, match="by the shares that were dealt"):
        combine({**chosen(1, 2), 3: wrong}, PUBLIC, threshold=3, count=5)


def test_shares_of_two_dealings_do_not_mix():
    other = partial_decryptions(CIPHERTEXTS, deal(PAIR, threshold=3, count=5)[2], PUBLIC)
    with pytest.raises(ValueError, match="by the shares that were dealt"):
        combine({**chosen(1, 2), 3: other}, PUBLIC, threshold=3, count=5)


def test_two_shares_where_three_are_needed_do_not_open():
    with pytest.raises(ValueError, match="by the shares that were dealt"):
        combine(chosen(1, 2), PUBLIC, threshold=2, count=5)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="of the same ciphertexts"):
        combine({**chosen(1, 2), 3: PARTIALS[3][:-1]}, PUBLIC, threshold=3, count=5)


@pytest.mark.parametrize(("threshold", "count"), [(0, 5), (6, 5), (2, 65), (1, 0)])
def test_a_dealing_that_makes_no_sense_is_refused(threshold, count):
    with pytest.raises(ValueError, match="1 <= threshold"):
        deal(PAIR, threshold=threshold, count=count)


@given(count=st.integers(1, 64), data=st.data())
def test_weights_restore_any_integer_polynomial_at_zero(count, data):
    threshold = data.draw(st.integers(1, min(count, 8)))
    coefficients = data.draw(
        st.lists(st.integers(-(10**6), 10**6), min_size=threshold, max_size=threshold)
    )
    points = data.draw(st.permutations(range(1, count + 1)))[:threshold]
    values = [
        sum(coefficient * point**power for power, coefficient in enumerate(coefficients))
        for point in points
    ]
    weights = integer_weights(points, count)
    delta = integer_weights([1], count)[0]
    found = sum(weight * value for weight, value in zip(weights, values, strict=True))
    assert found == delta * coefficients[0]


def test_every_dealing_is_another():
    assert not set(SHARES) & set(deal(PAIR, threshold=3, count=5))


SCOPE = b"this sum"
KEYS = verification_keys(SHARES, PAIR, SCOPE)


def proof_of(point=2, *, share=None, partials=None, scope=SCOPE):
    return prove(
        CIPHERTEXTS,
        partials or PARTIALS[point],
        share=share or SHARES[point - 1],
        key=KEYS[point - 1],
        public=PUBLIC,
        scope=scope,
        share_bits=BITS,
    )


def accepts(proof, *, point=2, ciphertexts=CIPHERTEXTS, partials=None, scope=SCOPE):
    return is_proved(
        proof,
        ciphertexts,
        partials or PARTIALS[point],
        key=KEYS[point - 1],
        public=PUBLIC,
        scope=scope,
        share_bits=BITS,
    )


@pytest.mark.parametrize("point", [1, 5])
def test_an_honest_proof_is_accepted(point):
    proof = proof_of(point)
    assert len(proof) == proof_bytes(BITS)
    assert accepts(proof, point=point)


def test_the_dealers_keys_are_the_powers_of_the_base():
    base = verification_base(PUBLIC, SCOPE)
    assert [pow(base, share, PUBLIC.square) for share in SHARES] == KEYS


def test_a_site_recognises_its_own_share_only():
    assert is_own_share(SHARES[0], KEYS[0], PUBLIC, SCOPE)
    assert not is_own_share(SHARES[0], KEYS[1], PUBLIC, SCOPE)
    assert not is_own_share(SHARES[0] + 1, KEYS[0], PUBLIC, SCOPE)
    assert not is_own_share(mpz(0), mpz(1), PUBLIC, SCOPE)


def test_proofs_are_never_the_same():
    assert proof_of() != proof_of()


def shifted(partials):
    """The plaintext of the first one raised by something: what a dishonest helper could add to a sum."""
    return [partials[0] * (1 + PUBLIC.n) % PUBLIC.square, *partials[1:]]


@pytest.mark.parametrize(
    "change",
    [shifted, lambda partials: partials[::-1], lambda partials: [mpz(1), *partials[1:]]],
    ids=["shifted", "in another order", "one left out"],
)
def test_partial_decryptions_of_something_else_cannot_be_proved(change):
    changed = change(PARTIALS[2])
    assert not accepts(proof_of(partials=changed), partials=changed)


def test_partial_decryptions_with_another_share_cannot_be_proved():
    assert not accepts(proof_of(share=SHARES[2], partials=PARTIALS[3]), partials=PARTIALS[3])


def test_a_shift_that_was_not_proved_would_change_the_plaintext_unseen():
    # Why there are proofs: without them the sum would be what the last helper wants.
    opened = combine({**chosen(1, 2), 3: shifted(PARTIALS[3])}, PUBLIC, threshold=3, count=5)
    assert opened[0] != PLAINTEXTS[0]
    assert opened[1:] == PLAINTEXTS[1:]


@pytest.mark.parametrize(
    "changed",
    [
        {"point": 3},
        {"scope": b"another sum"},
        {"ciphertexts": CIPHERTEXTS[::-1]},
        {"ciphertexts": []},
    ],
    ids=["of another site", "of another sum", "of other ciphertexts", "of none"],
)
def test_a_proof_serves_nothing_else(changed):
    assert not accepts(proof_of(), **{"partials": PARTIALS[2], **changed})


@settings(max_examples=20, deadline=None)
@given(place=st.integers(0, 8 * proof_bytes(BITS) - 1))
def test_a_proof_with_one_bit_changed_is_refused(place):
    proof = bytearray(PROOF)
    proof[place // 8] ^= 1 << place % 8
    assert not accepts(bytes(proof))


PROOF = proof_of()


@pytest.mark.parametrize(
    "change", [lambda proof: proof[:-1], lambda proof: proof + b"\0", lambda _: b""]
)
def test_a_proof_of_another_length_is_refused(change):
    assert not accepts(change(PROOF))
