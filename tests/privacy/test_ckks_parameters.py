"""Sizes of sums: exact by construction for every plan, and flooding that covers the errors as OpenFHE's rule asks."""

import math

import pytest

from privacy.ckks.parameters import (
    LARGEST_ERROR,
    LEAST_FLOODING_BITS,
    LIGHT,
    MOST_OPENINGS,
    NEEDED_FLOODING_BITS,
    STANDARD,
    light_sizes,
    standard_sizes,
)
from privacy.ckks.ring import ring_of

SITES = [1, 2, 3, 5, 32, 33, 60, 64]
BITS = [8, 20, 24, 30, 32]


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("modulus_bits", BITS)
def test_every_sum_that_a_plan_allows_fits_the_modulus_with_all_errors_and_flooding(
    sites, modulus_bits
):
    sizes = standard_sizes(modulus_bits=modulus_bits, sites=sites)
    delta = 1 << sizes.delta_exponent
    rest = sites * ((1 << sizes.flooding_exponent) + LARGEST_ERROR)
    # Below half a step, so that rounding gives the integer; and the whole below half the modulus, so that none wraps.
    assert rest < delta // 2
    assert delta * (1 << (modulus_bits - 1)) + rest < ring_of(STANDARD).modulus // 2


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("modulus_bits", BITS)
def test_the_same_holds_for_the_light_ring(sites, modulus_bits):
    sizes = light_sizes(modulus_bits=modulus_bits, sites=sites)
    delta = 1 << sizes.delta_exponent
    assert sites * LARGEST_ERROR < delta // 2
    assert delta * (1 << (modulus_bits - 1)) + delta // 2 < ring_of(LIGHT).modulus // 2


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("modulus_bits", BITS)
def test_flooding_covers_the_errors_by_forty_bits_times_the_root_of_twelve_openings(
    sites, modulus_bits
):
    sizes = standard_sizes(modulus_bits=modulus_bits, sites=sites)
    covered = (1 << sizes.flooding_exponent) / (sites * LARGEST_ERROR)
    assert covered >= 2**LEAST_FLOODING_BITS * math.sqrt(12 * MOST_OPENINGS)
    assert sizes.flooding_bits == pytest.approx(math.log2(covered))
    assert sizes.flooding_bits >= NEEDED_FLOODING_BITS


@pytest.mark.parametrize("modulus_bits", [33, 40])
def test_a_sum_of_too_many_bits_for_the_flooding_is_refused(modulus_bits):
    with pytest.raises(ValueError, match=r"bits, and 46\.8 are needed"):
        standard_sizes(modulus_bits=modulus_bits, sites=64)


@pytest.mark.parametrize("modulus_bits", [37, 45])
def test_a_sum_of_too_many_bits_for_the_light_ring_is_refused(modulus_bits):
    with pytest.raises(ValueError, match="errors could reach half a step"):
        light_sizes(modulus_bits=modulus_bits, sites=64)
