import math

import pytest

from privacy.dp.events import (
    MAX_CATEGORIES,
    MAX_COUNT,
    MAX_SENSITIVITY,
    MAX_UNITS,
    DiscreteLaplace,
    Event,
    RandomisedResponse,
    SubsampledGaussian,
    TruncatedSubsampledGaussian,
    event_from_json,
    event_to_json,
)

GAUSSIAN = SubsampledGaussian(sample_rate=0.1, noise_multiplier=1.5, steps=20)
LAPLACE = DiscreteLaplace(epsilon=0.05, sensitivity=100, count=3)

RESPONSE = RandomisedResponse(epsilon=2.0, categories=5, count=1)
TRUNCATED = TruncatedSubsampledGaussian(
    sample_rate=0.1, noise_multiplier=1.5, steps=20, units=1000, largest_batch=150
)


@pytest.mark.parametrize("event", [GAUSSIAN, LAPLACE, RESPONSE, TRUNCATED])
def test_an_event_survives_its_json(event: Event) -> None:
    assert event_from_json(event_to_json(event)) == event


def test_the_json_of_an_event_is_canonical() -> None:
    assert event_to_json(GAUSSIAN) == (
        '{"kind":"subsampled-gaussian/v1","noise_multiplier":1.5,"sample_rate":0.1,"steps":20}'
    )
    assert event_to_json(LAPLACE) == (
        '{"count":3,"epsilon":0.05,"kind":"discrete-laplace/v1","sensitivity":100}'
    )
    assert event_to_json(RESPONSE) == (
        '{"categories":5,"count":1,"epsilon":2.0,"kind":"randomised-response/v1"}'
    )
    assert event_to_json(TRUNCATED) == (
        '{"kind":"truncated-subsampled-gaussian/v1","largest_batch":150,"noise_multiplier":1.5,"sample_rate":0.1,'
        '"steps":20,"units":1000}'
    )


def test_a_whole_number_written_for_a_fraction_gives_an_equal_event() -> None:
    text = '{"kind":"subsampled-gaussian/v1","noise_multiplier":2,"sample_rate":1,"steps":5}'
    expected = SubsampledGaussian(sample_rate=1, noise_multiplier=2.0, steps=5)
    assert event_from_json(text) == expected
    assert event_to_json(event_from_json(text)) == event_to_json(expected)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"kind":"gaussian/v9","steps":1}', "unknown kind"),
        ('{"epsilon":1.0}', "unknown kind"),
        ('{"kind":["discrete-laplace/v1"]}', "unknown kind"),
        ("[]", "JSON object"),
        ("not json", "Expecting value"),
        ('{"kind":"discrete-laplace/v1","epsilon":1.0,"sensitivity":1}', "fields"),
        ('{"kind":"discrete-laplace/v1","epsilon":1.0,"sensitivity":1,"count":1,"x":1}', "fields"),
        ('{"kind":"discrete-laplace/v1","epsilon":true,"sensitivity":1,"count":1}', "epsilon"),
        ('{"kind":"discrete-laplace/v1","epsilon":1.0,"sensitivity":1.5,"count":1}', "sensitivity"),
        ('{"kind":"discrete-laplace/v1","epsilon":"1","sensitivity":1,"count":1}', "epsilon"),
        ('{"kind":"discrete-laplace/v1","epsilon":NaN,"sensitivity":1,"count":1}', "epsilon=nan"),
        ('{"kind":"discrete-laplace/v1","epsilon":-1.0,"sensitivity":1,"count":1}', "epsilon=-1.0"),
        ('{"kind":"randomised-response/v1","epsilon":1.0,"count":1}', "fields"),
        (
            '{"kind":"randomised-response/v1","epsilon":1.0,"count":1,"categories":2.0}',
            "categories",
        ),
        (
            '{"kind":"randomised-response/v1","epsilon":1.0,"count":1,"categories":1}',
            "categories=1",
        ),
        (
            '{"kind":"randomised-response/v2","epsilon":1.0,"count":1,"categories":2}',
            "unknown kind",
        ),
    ],
)
def test_what_is_not_an_event_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        event_from_json(text)


def test_an_object_that_is_no_event_is_not_written() -> None:
    with pytest.raises(ValueError, match="type str is unknown"):
        event_to_json("gaussian")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", -0.1),
        ("sample_rate", 1.1),
        ("sample_rate", math.nan),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", math.inf),
        ("steps", -1),
    ],
)
def test_a_gaussian_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    arguments = {"sample_rate": 0.1, "noise_multiplier": 1.0, "steps": 1} | {field: value}
    with pytest.raises(ValueError, match=f"{field}={value}"):
        SubsampledGaussian(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("epsilon", math.inf),
        ("sensitivity", 0),
        ("sensitivity", MAX_SENSITIVITY + 1),
        ("count", -1),
    ],
)
def test_a_discrete_laplace_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    arguments = {"epsilon": 0.1} | {field: value}
    with pytest.raises(ValueError, match=f"{field}={value}"):
        DiscreteLaplace(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("epsilon", math.nan),
        ("categories", 1),
        ("categories", MAX_CATEGORIES + 1),
        ("count", -1),
        ("count", MAX_COUNT + 1),
    ],
)
def test_a_randomised_response_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    arguments = {"epsilon": 0.1, "categories": 2} | {field: value}
    with pytest.raises(ValueError, match=f"{field}={value}"):
        RandomisedResponse(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 1.5),
        ("noise_multiplier", -1.0),
        ("steps", MAX_COUNT + 1),
        ("units", 0),
        ("units", MAX_UNITS + 1),
        ("largest_batch", 0),
    ],
)
def test_a_truncated_gaussian_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    arguments = {
        "sample_rate": 0.1,
        "noise_multiplier": 1.0,
        "steps": 1,
        "units": 100,
        "largest_batch": 20,
    } | {field: value}
    with pytest.raises(ValueError, match=f"{field}={value}"):
        TruncatedSubsampledGaussian(**arguments)  # type: ignore[arg-type]
