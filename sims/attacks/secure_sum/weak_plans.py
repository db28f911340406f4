"""A plan that does not stand against a lying coordinator: what ours refuses to make. For attacks and their tests only."""

from collections.abc import Collection

from privacy.secagg.plan import SumPlan


class MajorityPlan(SumPlan):
    """A bare majority confirms, and its own check is switched off: enough while the coordinator is honest."""

    def confirmations(self, sites: int) -> int:
        """More than half of the sites, however many may lie."""
        return sites // 2 + 1

    def require_cohort(self, sites: Collection[str]) -> None:
        """Nothing is required."""
