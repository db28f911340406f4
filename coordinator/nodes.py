"""Keeps Flower's list of nodes equal to the ledger's list of sites, which is the truth.

At the start, and whenever a site has enrolled: every active site without a node that the SuperLink knows is registered
with its key, and Flower's number for it goes into the ledger. A lost Flower database is thereby rebuilt.

Flower accepts a key once, for ever, and does not tell which number a key has. Its numbers are therefore kept in
`nodes.json` beside Flower's database, so that a site that was revoked may come back with the same key.
"""

import asyncio
import json
import logging
from pathlib import Path

from coordinator.errors import SupervisorError
from coordinator.ledger.records import Site
from coordinator.ledger.sites import SiteTable
from coordinator.superlink import SuperLink

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
RETRY_SECONDS = 5.0


class NodeRegistry:
    """The sites whose node the SuperLink knows."""

    def __init__(self, *, superlink: SuperLink, sites: SiteTable, numbers: Path) -> None:
        self._superlink = superlink
        self._sites = sites
        self._numbers = numbers
        self._known: frozenset[int] | None = None

    def knows(self, site: Site) -> bool:
        """Whether the SuperLink would recognise this site's node now."""
        return site.flower_node_id is not None and site.flower_node_id in (self._known or ())

    async def watch(self) -> None:
        """Registers what is missing, for ever."""
        while True:
            try:
                await self.reconcile()
                await asyncio.sleep(POLL_SECONDS)
            except SupervisorError as error:
                logger.warning("Nodes could not be compared with the ledger: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def reconcile(self) -> None:
        """Registers every active site whose node the SuperLink does not know.

        Raises:
            SupervisorError: the SuperLink cannot be reached, or holds a key under a number that nobody knows.
        """
        if self._known is None:
            self._known = frozenset(node.node_id for node in await self._superlink.nodes())
        for site in await asyncio.to_thread(self._sites.members):
            if not self.knows(site):
                await self._register(site)

    async def _register(self, site: Site) -> None:
        numbers = self._read_numbers()
        node_id = await self._superlink.register_node(site.node_key, site=site.name)
        if node_id is None:
            node_id = numbers.get(site.node_key) or await self._orphan(site, numbers)
        self._write_numbers({**numbers, site.node_key: node_id})
        await asyncio.to_thread(self._sites.set_flower_node_id, site.name, node_id)
        self._known = (self._known or frozenset()) | {node_id}
        logger.info('Registered the node of site "%s" with Flower.', site.name)

    async def _orphan(self, site: Site, numbers: dict[str, int]) -> int:
        """The number that was lost between Flower's registration and our note of it.

        Registrations are made one at a time: an interrupted one leaves exactly one number that is nobody's.
        """
        nodes = {node.node_id for node in await self._superlink.nodes()}
        orphans = nodes - set(numbers.values())
        if len(orphans) != 1:
            raise SupervisorError(
                f'Site "{site.name}": Flower holds its node key under a number that was not noted, and '
                f"{len(orphans)} numbers are nobody's. Stop the coordinator, remove {self._numbers} and state.db* "
                "beside it, and start it again: nodes are then registered anew from the ledger."
            )
        return orphans.pop()

    def _read_numbers(self) -> dict[str, int]:
        """Node key to Flower's number, for every key that Flower was ever given."""
        if not self._numbers.exists():
            return {}
        return {
            str(key): int(number) for key, number in json.loads(self._numbers.read_text()).items()
        }

    def _write_numbers(self, numbers: dict[str, int]) -> None:
        partial = self._numbers.with_suffix(".partial")
        partial.write_text(json.dumps(numbers, indent=1))
        partial.replace(self._numbers)
