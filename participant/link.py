"""TLS towards the coordinator: whom a site trusts, and what a failed connection means to the person who runs it."""

import datetime
import ssl

import httpx

from participant.identity import IdentityFiles

CERTIFICATE_OUT_OF_TIME = (9, 10)
"""OpenSSL: X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
NAME_MISMATCH = (62, 64)
"""OpenSSL: X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


def consortium_tls(ca_certificate: str) -> ssl.SSLContext:
    """TLS 1.3 as nobody in particular, trusting one authority and nobody else.

    Args:
        ca_certificate: PEM.

    Raises:
        ssl.SSLError: that is not a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the host name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_certificate)
    return context


def site_tls(files: IdentityFiles) -> ssl.SSLContext:
    """TLS 1.3 as this site, trusting the consortium's authority and nobody else.

    Raises:
        OSError: a file cannot be read.
        ssl.SSLError: certificate and key do not belong together.
    """
    context = consortium_tls(files.ca_certificate.read_text(encoding="ascii"))
    context.load_cert_chain(files.tls_certificate, files.tls_key)
    return context


def describe_failure(address: str, error: Exception) -> str:
    """What stands between this site and `address`, and what to do about it."""
    cause = _tls_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in CERTIFICATE_OUT_OF_TIME:
            now = datetime.datetime.now(datetime.UTC)
            return (
                f"The certificate of {address} is not valid at this machine's time, {now:%Y-%m-%d %H:%M} UTC. "
                "Check the clock of this machine first, then ask the operator to renew the certificate."
            )
        if cause.verify_code in NAME_MISMATCH:
            return (
                f"The certificate of {address} is for another name ({cause.verify_message}). "
                "Ask the operator under which address the coordinator is meant to be reached."
            )
        return (
            f"The certificate of {address} was not issued by this consortium's authority "
            f"({cause.verify_message}). Somebody stands between, or the authority was replaced: ask the operator."
        )
    if cause is not None:
        return (
            f"{address} refused this site's certificate ({cause.reason}). It has expired or was revoked: "
            "ask the operator for a new invitation."
        )
    detail = str(error) or type(error).__name__
    if isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        # Over TLS 1.3 a refused certificate often shows only as a connection that is reset after the handshake.
        return (
            f"{address} broke off the connection ({detail}). If this lasts, the operator may have revoked this "
            "site's certificate: ask for a new invitation."
        )
    return f"{address} cannot be reached ({detail}). Check address and network."


def _tls_cause(error: BaseException) -> ssl.SSLError | None:
    """The TLS failure behind an error; None for a connection that was merely cut."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
            return None
        if isinstance(cause, ssl.SSLError):
            # A link that was cut in mid-handshake names no reason.
            return cause if getattr(cause, "reason", None) else None
        cause = cause.__cause__ or cause.__context__
    return None
