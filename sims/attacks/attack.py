"""The attacks on what a coordinator sees, and what they came to: with privacy and without, by sum and by single vectors.

1. Inversion: the last block routes one token of each patient. Of an expert that exactly one patient visited, the change
   of the matrix gives that patient's token away. Judged by |cosine| with the true token; `chance` is what a random
   direction would reach.
2. Membership, by an attacker who knows every record and not who took part: how much of each candidate's gradient is in
   the released changes, over pairs of independent runs.

Without privacy both attacks must succeed, or their failure with privacy would prove nothing.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from coordinator.run_spec import RunSpec
from model.build import TabularModel, build_model
from model.parameters import load_vector, parameter_layout
from participant.training import binary_loss
from privacy.audit.bounds import membership_auc_bound
from privacy.audit.inversion import chance_likeness, invert_experts, likeness
from privacy.audit.membership import (
    AreaEstimate,
    Trial,
    contributions,
    paired_auc,
    record_gradients,
    repeat,
)
from privacy.audit.report import AuditLine, AuditReport, at_least, at_most
from privacy.dp.clipping import trainable_parameters
from sims.attacks.federation import (
    CANDIDATES,
    CERTAIN,
    AttackedRun,
    Recording,
    Release,
    View,
    attack_spec,
    candidate_tables,
    record,
)
from sims.scenario import read_site_data

# P parameters, M candidates, B records, D width

ERROR = 0.01
"""Of each confidence interval of a membership AUC."""
FOUND = 0.99
"""An inversion above this |cosine| has found the token."""
HIDDEN = 0.2
"""Below this mean |cosine| it has found nothing worth having."""
VIEWS: tuple[View, ...] = ("sum", "single")


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """Both attacks on one kind of run."""

    view: View
    epsilon: float | None
    """Total of the run; None without privacy."""
    delta: float
    noise_multiplier: float
    tokens: int
    """Tokens that could have been found: experts with exactly one visitor, over all runs."""
    likeness: float
    """Mean |cosine| of guess and token."""
    chance: float
    """Mean |cosine| of a random guess."""
    membership: AreaEstimate
    auc_bound: float
    """What epsilon allows; 1 without privacy."""


@dataclass(frozen=True, kw_only=True)
class AttackSuite:
    """All results, and the verdicts on them."""

    results: tuple[AttackResult, ...]
    report: AuditReport

    def as_json(self) -> dict[str, Any]:
        """The object that `sims attack --json` prints."""
        return {
            "unit": "patient",
            "adjacency": "add-or-remove-one",
            "results": [asdict(result) for result in self.results],
            **self.report.as_json(),
        }


def run_attacks(
    *, epsilon: float, pairs: int, seed: int, progress: Callable[[str], None]
) -> AttackSuite:
    """Rehearses and attacks 2 * `pairs` runs of each kind: both views, with and without privacy.

    Args:
        epsilon: total of a private run, > 0.
        pairs: of independent runs; `paired_auc` says how many it needs.
        seed: of the coins that decide about the candidates.
        progress: told what is being done.

    Raises:
        ConfigError: an epsilon for which there is no noise.
        RoundError: a rehearsal failed.
    """
    runs = [AttackedRun(view=view, epsilon=budget) for view in VIEWS for budget in (None, epsilon)]
    for run in runs:
        attack_spec(run)  # refuses what cannot be, before minutes are spent
    results = []
    for run in runs:
        privacy = "no privacy" if run.epsilon is None else f"epsilon {run.epsilon:g}"
        progress(f"{2 * pairs} rehearsals, {run.view}, {privacy}")
        results.append(attack(run, pairs=pairs, coins=np.random.default_rng(seed)))
    lines = [line for result in results for line in judge(result)]
    return AttackSuite(results=tuple(results), report=AuditReport(lines=tuple(lines)))


def attack(run: AttackedRun, *, pairs: int, coins: np.random.Generator) -> AttackResult:
    """Rehearses `run` 2 * `pairs` times and attacks every rehearsal."""
    tables = candidate_tables()
    found: list[float] = []
    spec: list[RunSpec] = []

    def trial(number: int, was_in_M: NDArray[np.bool_]) -> NDArray[np.float64]:
        del number
        coins_by_site = dict(zip(tables, np.split(was_in_M, len(tables)), strict=True))
        with tempfile.TemporaryDirectory() as folder:
            recording = record(run, tables, coins_by_site, Path(folder) / "run")
        spec.append(recording.spec)
        found.extend(invert(recording))
        return membership_scores(recording, tables)

    trials: list[Trial] = repeat(
        trial, candidates=CANDIDATES * len(tables), pairs=pairs, coins=coins
    )
    return AttackResult(
        view=run.view,
        epsilon=run.epsilon,
        delta=run.delta,
        noise_multiplier=spec[0].privacy.noise_multiplier,
        tokens=len(found),
        likeness=float(np.mean(found)) if found else 0.0,
        chance=chance_likeness(spec[0].model.width),
        membership=paired_auc(trials, error=ERROR),
        auc_bound=1.0 if run.epsilon is None else membership_auc_bound(run.epsilon, run.delta),
    )


def judge(result: AttackResult) -> tuple[AuditLine, AuditLine]:
    """Without privacy the attacks must work; with it they must fail, inversion from noise multiplier 0.5 on."""
    area = result.membership
    interval = f"{area.auc:.3f}, {area.lower:.3f} to {area.upper:.3f} over {area.pairs} pairs"
    tokens = f"mean |cosine| of {result.tokens} tokens; chance {result.chance:.3f}"
    confidence = 1.0 - ERROR
    if result.epsilon is None:
        where = f"{result.view}, no privacy"
        return (
            at_least(
                f"inversion works: {where}", result.likeness, FOUND, confidence=1.0, detail=tokens
            ),
            at_least(
                f"membership works: {where}",
                area.lower,
                0.5,
                confidence=confidence,
                detail=interval,
            ),
        )
    where = f"{result.view}, epsilon {result.epsilon:g}"
    return (
        at_most(
            f"inversion fails: {where}",
            result.likeness,
            HIDDEN if result.noise_multiplier >= 0.5 else 1.0,
            confidence=confidence,
            detail=f"{tokens}; noise multiplier {result.noise_multiplier:.2f}",
        ),
        at_most(
            f"membership within epsilon: {where}",
            area.auc,
            result.auc_bound,
            confidence=confidence,
            detail=interval,
        ),
    )


def invert(recording: Recording) -> list[float]:
    """|cosine| of guess and truth for every expert of the last block that exactly one patient visited.

    The first round is left out: a fresh model's read-out is zero, so its experts do not move.
    """
    found = []
    for release in recording.releases:
        if release.round > 1:
            found.extend(_invert_release(recording, release))
    return found


def membership_scores(
    recording: Recording, tables: Mapping[str, pd.DataFrame]
) -> NDArray[np.float64]:
    """Guesses at who took part, summed over the rounds [M]; sites in order of `tables`."""
    spec = recording.spec
    with tempfile.TemporaryDirectory() as folder:
        known = {s: read_site_data(t, spec.table, Path(folder)) for s, t in tables.items()}
    scores = {site: np.zeros(CANDIDATES) for site in tables}
    for release in recording.releases:
        model = _model(spec, release)
        gradients_MP = record_gradients(
            model,
            binary_loss,
            torch.from_numpy(np.concatenate([known[site].values_NF for site in release.sites])),
            torch.from_numpy(np.concatenate([known[site].labels_N for site in release.sites])),
            clipping_norm=spec.privacy.clipping_norm if spec.privacy.is_private else None,
        )
        by_site = gradients_MP.reshape(len(release.sites), CERTAIN + CANDIDATES, -1)
        # Every site of the sum adds noise of its own.
        noise = spec.privacy.noise_multiplier * spec.privacy.clipping_norm
        guesses = contributions(
            by_site[:, CERTAIN:].flatten(0, 1),
            by_site[:, :CERTAIN].sum((0, 1)),
            _in_model_order(spec, model, release),
            noise_deviation=noise * len(release.sites) ** 0.5,
        )
        for site, of_site in zip(release.sites, np.split(guesses, len(release.sites)), strict=True):
            scores[site] += of_site
    return np.concatenate(list(scores.values()))


def _invert_release(recording: Recording, release: Release) -> list[float]:
    model = _model(recording.spec, release)
    values = np.concatenate([recording.present[site].values_NF for site in release.sites])
    tokens_BD, experts_BK = _last_tokens(model, torch.from_numpy(values))
    name = f"trunk.blocks.{recording.spec.model.layers - 1}.moe.routed_up.weight"
    slots = {
        slot.name: slot for slot in parameter_layout(recording.spec.model, recording.spec.table)
    }
    slot = slots[name]
    change = torch.from_numpy(release.change[slot.start : slot.stop].copy()).view(slot.shape)
    guesses = invert_experts(change)
    found = []
    for expert, guess in enumerate(guesses):
        visitors = tokens_BD[(experts_BK == expert).any(1)]
        if len(visitors) == 1:
            found.append(0.0 if guess is None else likeness(guess.token_I, visitors[0]))
    return found


def _last_tokens(model: TabularModel, values_BC: Tensor) -> tuple[Tensor, Tensor]:
    """What the last block's experts read for each patient [B, D], and which experts read it [B, K]."""
    seen: list[tuple[Tensor, Tensor]] = []
    layer = model.get_submodule(f"trunk.blocks.{len(model.trunk.blocks) - 1}.moe.routed_up")
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[:2]))
    with torch.no_grad():
        model(values_BC)
    hook.remove()
    rows_BRD, expert_ids_BR = seen[0]
    return rows_BRD[:, 0], expert_ids_BR


def _model(spec: RunSpec, release: Release) -> TabularModel:
    model = build_model(spec.model, spec.table, seed=0)
    load_vector(model, release.base)
    return model


def _in_model_order(spec: RunSpec, model: TabularModel, release: Release) -> Tensor:
    """The change of what is trained, flat in the order of the model's own parameters."""
    slots = {slot.name: slot for slot in parameter_layout(spec.model, spec.table)}
    change_P = torch.from_numpy(np.ascontiguousarray(release.change))
    return torch.cat(
        [change_P[slots[name].start : slots[name].stop] for name in trainable_parameters(model)]
    )
