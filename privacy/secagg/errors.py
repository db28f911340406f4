"""Errors of secure sums.

SecureSumError
├── MessageRefused    one message is not acceptable; it changed nothing. Says from whom, in which leg, and why.
├── QuorumLost        too few sites are left; nothing can be opened any more, by anybody.
├── SealedTwice       this site has already sealed other bytes under the same run, round and attempt.
└── SumImpossible     the opened sum is larger than so many honest sites could make it.

After any of them the attempt is over or goes on without the site named; no secret is ever in their text.
"""


class SecureSumError(Exception):
    """A secure sum that cannot go on as planned."""


class MessageRefused(SecureSumError):  # noqa: N818 - named for what happened to the message
    """A message that is malformed, replayed, forged, out of turn, or asks for what must stay secret."""

    def __init__(self, *, site: str, leg: str, reason: str) -> None:
        super().__init__(f'Secure sum, leg "{leg}", site "{site}": {reason}')
        self.site = site
        """Who sent it, or whose part of it is at fault; `coordinator` for the coordinator's own."""
        self.leg = leg
        self.reason = reason


class QuorumLost(SecureSumError):  # noqa: N818 - named for what happened to the cohort
    """Too few sites are left to go on. Nothing was opened; start a new attempt with new masks."""

    def __init__(
        self,
        *,
        leg: str,
        present: tuple[str, ...],
        needed: int,
        lacking: str = "",
        dealer: str = "",
    ) -> None:
        who = f' and "{lacking}", which makes the key,' if lacking else ""
        whose = f' that hold shares of site "{dealer}"' if dealer else ""
        super().__init__(
            f'Secure sum, leg "{leg}": {len(present)} sites{whose} left ({", ".join(present) or "none"}), '
            f"{needed}{who} needed. Nothing was opened; start a new attempt when more sites are online."
        )
        self.leg = leg
        self.present = present
        self.needed = needed


class SealedTwice(SecureSumError):  # noqa: N818 - named for what was attempted
    """Sealing two vectors under one attempt could reveal their difference; the second is refused."""


class SumImpossible(SecureSumError):  # noqa: N818 - named for what was found
    """At least one site sealed values outside the plan, or with masks that do not cancel."""
