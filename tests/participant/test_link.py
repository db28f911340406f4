import ssl

import httpx

from participant.link import describe_failure


def failure(cause: Exception) -> httpx.ConnectError:
    error = httpx.ConnectError("broken")
    error.__cause__ = cause
    return error


def test_a_link_that_is_cut_in_the_handshake_is_not_taken_for_a_refused_certificate() -> None:
    text = describe_failure("coordinator.test:8443", failure(ssl.SSLError()))
    assert "cannot be reached" in text
    assert "certificate" not in text


def test_a_cut_that_names_itself_is_a_cut() -> None:
    text = describe_failure("coordinator.test:8443", failure(ssl.SSLEOFError(8, "EOF occurred")))
    assert "cannot be reached" in text
