"""Sites and invitations: who may take part, and how one gets in exactly once."""

import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from coordinator.errors import EnrolmentError, TokenRefused
from coordinator.ledger.engine import reading, writing
from coordinator.ledger.records import Site
from coordinator.ledger.tables import IncidentRow, InvitationRow, SiteRow

INVITATION_LIFETIME = timedelta(hours=1)
SITE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


class SiteTable:
    """Enrolment as the ledger keeps it. Each method is one transaction."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    def invite(
        self, site: str, *, token_sha256: str, lifetime: timedelta = INVITATION_LIFETIME
    ) -> datetime:
        """Opens an invitation for `site` and returns when it expires; earlier ones of the site end now.

        Raises:
            EnrolmentError: not a site's name, or a site that is enrolled already.
            ValueError: a token that is not hashed.
        """
        if SITE_NAME.fullmatch(site) is None:
            raise EnrolmentError(
                f"{site!r} cannot name a site: use 1 to 40 of a-z, 0-9 and -, with no - at either end."
            )
        if re.fullmatch("[0-9a-f]{64}", token_sha256) is None:
            # The value is not repeated: it may be the token itself.
            raise ValueError("Expected token_sha256 to be 64 hex digits.")
        now = self._clock()
        expires_at = now + lifetime
        with writing(self._engine) as connection:
            _require_not_enrolled(connection, site)
            connection.execute(
                update(InvitationRow)
                .where(
                    InvitationRow.site == site,
                    InvitationRow.used_at.is_(None),
                    InvitationRow.expires_at > now,
                )
                .values(expires_at=now)
            )
            connection.execute(
                insert(InvitationRow).values(
                    site=site, token_sha256=token_sha256, created_at=now, expires_at=expires_at
                )
            )
        return expires_at

    def redeem_invitation(self, token_sha256: str) -> str:
        """Uses an invitation up and returns the site it is for. Of many at once, exactly one caller succeeds.

        Raises:
            TokenRefused: unknown, used or expired.
        """
        now = self._clock()
        with writing(self._engine) as connection:
            # The condition and the mark are one statement: no two transactions can both find it unused.
            used = connection.execute(
                update(InvitationRow)
                .where(
                    InvitationRow.token_sha256 == token_sha256,
                    InvitationRow.used_at.is_(None),
                    InvitationRow.expires_at > now,
                )
                .values(used_at=now)
            )
            if used.rowcount != 1:
                raise TokenRefused(
                    "The invitation is unknown, used or expired. Ask the coordinator's operator for a new one."
                )
            return connection.execute(
                select(InvitationRow.site).where(InvitationRow.token_sha256 == token_sha256)
            ).scalar_one()

    def enrol(self, *, name: str, signing_key: str, node_key: str, certificate_sha256: str) -> Site:
        """Makes a site a member. A revoked site comes back with its new keys, and that is an incident.

        Raises:
            EnrolmentError: the site is enrolled already, or a key or certificate belongs to another site.
        """
        now = self._clock()
        site = Site(
            name=name,
            signing_key=signing_key,
            node_key=node_key,
            certificate_sha256=certificate_sha256,
            enrolled_at=now,
        )
        with writing(self._engine) as connection:
            revoked = _require_not_enrolled(connection, name)
            statement = insert(SiteRow)
            if revoked is not None:
                statement = update(SiteRow).where(SiteRow.name == name)  # type: ignore[assignment]
                connection.execute(
                    insert(IncidentRow).values(
                        at=now,
                        site=name,
                        kind="site-returned",
                        text=f"Enrolled again after its revocation of {revoked.revoked_at:%Y-%m-%d %H:%M} UTC; its "
                        f"certificate was {revoked.certificate_sha256}.",
                    )
                )
            try:
                connection.execute(statement.values(**asdict(site)))
            except IntegrityError as error:
                raise EnrolmentError(
                    f'Site "{name}" cannot be enrolled: its signing key, node key or certificate belongs to another '
                    "site. Each site must make its own keys (participant join)."
                ) from error
        return site

    def set_flower_node_id(self, name: str, node_id: int) -> None:
        """Remembers Flower's number for the site's node.

        Raises:
            EnrolmentError: no such site, a revoked one, or the number of another site's node.
        """
        with writing(self._engine) as connection:
            try:
                changed = connection.execute(
                    update(SiteRow)
                    .where(SiteRow.name == name, SiteRow.revoked_at.is_(None))
                    .values(flower_node_id=node_id)
                )
            except IntegrityError as error:
                raise EnrolmentError(
                    f'Flower node {node_id} cannot be given to site "{name}": it is another site\'s.'
                ) from error
            if changed.rowcount != 1:
                raise _unknown(name)

    def revoke(self, name: str) -> None:
        """From now on the site is no member; what it did stays recorded. A second time changes nothing.

        Raises:
            EnrolmentError: no such site.
        """
        with writing(self._engine) as connection:
            changed = connection.execute(
                update(SiteRow)
                .where(SiteRow.name == name, SiteRow.revoked_at.is_(None))
                .values(revoked_at=self._clock())
            )
            if changed.rowcount == 0 and _find(connection, name) is None:
                raise _unknown(name)

    def members(self) -> tuple[Site, ...]:
        """The enrolled sites that are not revoked, by name."""
        query = select(SiteRow.__table__).where(SiteRow.revoked_at.is_(None)).order_by(SiteRow.name)
        with reading(self._engine) as connection:
            return tuple(Site(**row._asdict()) for row in connection.execute(query))

    def get(self, name: str) -> Site | None:
        """The site of that name, revoked or not."""
        with reading(self._engine) as connection:
            return _find(connection, name)

    def by_certificate(self, certificate_sha256: str) -> Site | None:
        """The member that this client certificate was issued to; None for a stranger's, an old or a revoked one."""
        query = select(SiteRow.__table__).where(
            SiteRow.certificate_sha256 == certificate_sha256, SiteRow.revoked_at.is_(None)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Site(**row._asdict())


def _find(connection: Connection, name: str) -> Site | None:
    row = connection.execute(select(SiteRow.__table__).where(SiteRow.name == name)).one_or_none()
    return None if row is None else Site(**row._asdict())


def _require_not_enrolled(connection: Connection, name: str) -> Site | None:
    site = _find(connection, name)
    if site is not None and site.revoked_at is None:
        raise EnrolmentError(
            f'Site "{name}" is enrolled since {site.enrolled_at:%Y-%m-%d %H:%M} UTC. To enrol it anew, revoke it first.'
        )
    return site


def _unknown(name: str) -> EnrolmentError:
    return EnrolmentError(f'The ledger knows no enrolled site "{name}".')
