"""What a run came to, read from the ledger and judged on held-out patients: one object for people and for scripts."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coordinator.ledger.records import RunHistory
from coordinator.ledger.report import SharedNoiseGuarantee, shared_noise_guarantee
from coordinator.ledger.states import ParticipationState
from participant.data import SiteData
from sims.evaluation import Quality, evaluate_file
from sims.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class Spent:
    """A site's privacy budget after the run; meaningless without all four."""

    epsilon: float
    delta: float
    unit: str
    adjacency: str


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """One committed round."""

    number: int
    quality: Quality
    training_loss: float | None
    bytes_by_site: Mapping[str, int]
    epsilon_by_site: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run."""

    scenario: str
    sites: tuple[str, ...]
    model_hash: str
    quality: Quality
    spent: Mapping[str, Spent]
    shared_noise: SharedNoiseGuarantee | None
    """What the sums cost as released, beside what was reserved; None where sites share no noise."""
    rounds: tuple[RoundFacts, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object that `sims run --json` prints."""
        return {
            "scenario": self.scenario,
            "rounds": len(self.rounds),
            "sites": list(self.sites),
            "model_hash": self.model_hash,
            "auc": self.quality.pooled.auc,
            "accuracy": self.quality.pooled.accuracy,
            "by_site": {site: asdict(score) for site, score in self.quality.sites.items()},
            "epsilon": {site: asdict(spent) for site, spent in self.spent.items()},
            "shared_noise": None if self.shared_noise is None else asdict(self.shared_noise),
            "bytes_per_round": {
                site: sum(r.bytes_by_site.get(site, 0) for r in self.rounds) // len(self.rounds)
                for site in self.sites
            },
            "seconds": self.seconds,
        }


def read_outcome(
    history: RunHistory,
    *,
    scenario: Scenario,
    held_out: Mapping[str, SiteData],
    models: Path,
    seconds: float,
) -> Outcome:
    """The outcome of a finished run.

    Args:
        history: the run in the ledger.
        scenario: what was run.
        held_out: patients to judge by.
        models: folder of the coordinator's model files.
        seconds: wall time of the run.
    """
    committed = [r for r in history.rounds if r.model_sha256 is not None]
    losses = {m.round: m.metric.value for m in history.metrics if m.metric.name == "training_loss"}
    traffic: dict[int, dict[str, int]] = defaultdict(dict)
    duration: dict[int, float] = {}
    for row in history.participations:
        part = row.participation
        if part.state == ParticipationState.COUNTED:
            traffic[row.round][part.site] = part.bytes_sent + part.bytes_received
            duration[row.round] = part.seconds
    epsilon: dict[int, dict[str, float]] = defaultdict(dict)
    spent: dict[str, Spent] = {}
    for charged in history.charges:
        charge = charged.charge
        epsilon[charged.round][charge.site] = charge.epsilon
        spent[charge.site] = Spent(
            epsilon=charge.epsilon,
            delta=charge.delta,
            unit=charge.unit,
            adjacency=charge.adjacency,
        )
    rounds = tuple(
        RoundFacts(
            number=r.number,
            quality=evaluate_file(
                models / f"{r.model_sha256}.safetensors", scenario=scenario, held_out=held_out
            ),
            training_loss=losses.get(r.number),
            bytes_by_site=traffic[r.number],
            epsilon_by_site=epsilon[r.number],
            seconds=duration.get(r.number, 0.0),
        )
        for r in committed
    )
    return Outcome(
        scenario=scenario.name,
        sites=tuple(scenario.train),
        model_hash=str(committed[-1].model_sha256),
        quality=rounds[-1].quality,
        spent=spent,
        shared_noise=shared_noise_guarantee(history),
        rounds=rounds,
        seconds=seconds,
    )
