import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.wire.charges import attempt_events, gradient_event, run_events
from coordinator.wire.contribution import LABELS, LOSS_CAP, SCORE_BINS, contribution_layout
from participant.budget import SiteBudget
from participant.config import BudgetContract
from participant.errors import (
    BudgetError,
    BudgetExhausted,
    OutboxError,
    PolicyRefusal,
    RoundAborted,
)
from participant.outbox import Outbox, StoredSeals
from participant.policy import SitePolicy
from participant.release import Evaluation, ReleaseGate, score_counts
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import DiscreteLaplace, SubsampledGaussian
from privacy.dp.updates import ModelUpdate, NoisedUpdate
from privacy.secagg.protocol import seal_key
from tests.sims.small_federation import WITH_DP, small_plan, small_spec

PLAN = small_plan(small_spec(Path(tempfile.mkdtemp())))
PARAMETERS = contribution_layout(PLAN.model, PLAN.table, PLAN.privacy).parameters
CHANGE = np.linspace(-0.2, 0.2, PARAMETERS, dtype=np.float32)
PATIENTS = 40


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return small_spec(tmp_path_factory.mktemp("run"), **WITH_DP)


@pytest.fixture(scope="module")
def open_spec(tmp_path_factory):
    return small_spec(tmp_path_factory.mktemp("run"))


@dataclass
class Site:
    """The durable parts of a site, and a gate; `restart` is what a new process finds."""

    folder: Path
    epsilon: float = 8.0
    require_dp: bool = True
    max_update_norm: float | None = None

    def __post_init__(self):
        contract = BudgetContract(data_set="small", epsilon=self.epsilon, delta=1e-5)
        if not (self.folder / "budget.db").exists():
            SiteBudget.create(self.folder / "budget.db", contract)
        self.budget = SiteBudget(self.folder / "budget.db", contract)
        self.seals = StoredSeals(self.folder / "seals")
        self.outbox = Outbox(self.folder / "outbox")
        self.computed = 0
        self.gate = ReleaseGate(
            site="anna",
            policy=SitePolicy(
                bundles=(), require_dp=self.require_dp, max_update_norm=self.max_update_norm
            ),
            budget=self.budget,
            outbox=self.outbox,
            seals=self.seals,
        )

    def restart(self):
        return replace(self)

    def contribute(
        self, plan, change=CHANGE, *, update=None, patients=40.0, losses=0.7, loads=None
    ):
        """What the site would seal; counts how often it had to compute."""

        def train():
            self.computed += 1
            if update is not None:
                return update
            if not plan.privacy.is_private:
                return ModelUpdate(values=change)
            event = gradient_event(plan.privacy, plan.training)
            return NoisedUpdate(values=change, events=(event,), statistics=loads)

        found = Evaluation(
            losses_U=np.full(PATIENTS, losses),
            scores_U=np.linspace(0.0, 1.0, PATIENTS),
            labels_U=np.arange(PATIENTS, dtype=np.float32) % 2,
        )
        return self.gate.contribution(plan, patients=patients, train=train, evaluate=lambda: found)

    def seal(self, plan):
        """The secure sum's journal remembers that a vector was sealed in this attempt."""
        self.seals.record(seal_key(plan.run_id, plan.round, plan.attempt), b"digest")

    def intents(self):
        return [charge.intent for charge in self.budget.charges()]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_an_attempt_is_charged_before_anything_is_computed(site, spec):
    charge = site.gate.charge(small_plan(spec))
    plan = small_plan(spec)
    assert charge.events == attempt_events(plan.privacy, plan.training)
    assert 0 < site.budget.spent().epsilon <= 8.0
    assert site.computed == 0
    assert site.intents() == ["small/count", f"small/1/1/{'ab' * 32}"]


def test_the_count_is_charged_once_in_a_run(site, spec):
    for number in (1, 2):
        site.gate.charge(small_plan(spec, number=number))
    assert site.intents().count("small/count") == 1


def test_nothing_is_charged_without_privacy(site, open_spec):
    assert site.gate.charge(small_plan(open_spec)) is None
    assert site.intents() == []


def test_a_contract_without_room_refuses_and_stays_as_it_was(tmp_path, spec):
    site = Site(tmp_path, epsilon=0.5)
    with pytest.raises(BudgetExhausted, match="refused and not charged"):
        site.gate.charge(small_plan(spec))
    assert site.intents() == []


def test_the_whole_run_costs_no_more_than_the_plan_says(spec):
    plan = small_plan(spec)
    assert epsilon_spent(run_events(plan), plan.privacy.delta) <= plan.privacy.epsilon
    one = SubsampledGaussian(
        sample_rate=0.5, noise_multiplier=plan.privacy.noise_multiplier, steps=2
    )
    loss = DiscreteLaplace(epsilon=0.02, sensitivity=64)
    assert attempt_events(plan.privacy, plan.training) == (one, loss)
    assert run_events(plan) == (
        replace(one, steps=6),
        DiscreteLaplace(epsilon=0.1),
        replace(loss, count=3),
    )


def test_the_number_of_patients_is_noised_once_and_then_always_the_same(site, spec):
    counts = {site.gate.patients(small_plan(spec, number=n), 40) for n in (1, 2, 3)}
    assert counts == {site.restart().gate.patients(small_plan(spec), 40)}
    assert min(counts) >= 1


@pytest.mark.statistical
def test_the_number_of_patients_is_not_the_number_of_patients(site, spec):
    # P(noise = 0) is 0.05 at epsilon 0.1: 40 runs without any noise have probability 1e-52.
    counts = {site.gate.patients(small_plan(spec, run_id=f"run-{n}"), 500) for n in range(40)}
    assert len(counts) > 1


def test_the_number_of_patients_is_exact_where_no_privacy_is_asked(site, open_spec):
    assert site.gate.patients(small_plan(open_spec), 40) == 40.0


def test_what_is_sealed_is_what_was_stored_first(site, spec):
    plan = small_plan(spec)
    vector = site.contribute(plan)
    stored = site.restart().contribute(plan, change=CHANGE * 2)
    assert (vector == stored).all()
    assert vector[:PARAMETERS] == pytest.approx(CHANGE * 0.4)


def test_a_released_loss_is_noised_with_privacy_and_exact_without(tmp_path, spec, open_spec):
    (tmp_path / "open").mkdir()
    exact = Site(tmp_path / "open", require_dp=False).contribute(small_plan(open_spec))
    assert exact[-1] == pytest.approx(40 * 0.7 / (LOSS_CAP * 100))
    # The scale of the noise is 64 / 0.02 = 3200 grid steps: two equal draws have probability below 1e-3.
    noised = Site(tmp_path).contribute(small_plan(spec))
    assert noised[-1] != pytest.approx(float(exact[-1]), abs=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_not_sent_or_stored(site, spec, poison):
    plan, bad = small_plan(spec), CHANGE.copy()
    bad[3] = poison
    with pytest.raises(ValueError, match="Nothing was sent"):
        site.contribute(plan, change=bad)
    site.contribute(plan)
    assert site.computed == 2


def test_an_update_without_privacy_does_not_pass_where_the_site_demands_it(site, open_spec):
    with pytest.raises(PolicyRefusal, match='"require_dp"'):
        site.contribute(small_plan(open_spec))


def test_an_unprotected_update_does_not_pass_under_a_private_plan(tmp_path, spec):
    lax = Site(tmp_path, require_dp=False)
    with pytest.raises(PolicyRefusal, match='"require_dp"'):
        lax.contribute(small_plan(spec), update=ModelUpdate(values=CHANGE))


def test_an_update_that_cost_more_than_was_charged_does_not_pass(site, spec):
    plan = small_plan(spec)
    noise = plan.privacy.noise_multiplier
    dearer = SubsampledGaussian(sample_rate=0.5, noise_multiplier=noise, steps=50)
    with pytest.raises(PolicyRefusal, match="not the one that was charged"):
        site.contribute(plan, update=NoisedUpdate(values=CHANGE, events=(dearer,)))
    assert site.computed == 1


def test_a_crash_between_charge_and_outbox_refunds_nothing_and_charges_nothing_anew(site, spec):
    plan = small_plan(spec)
    first = site.gate.charge(plan)
    after_crash = site.restart()
    assert after_crash.gate.charge(plan) == first
    after_crash.contribute(plan)
    assert after_crash.computed == 1


def test_an_unsealed_update_of_an_aborted_attempt_is_sent_again_without_a_new_charge(site, spec):
    first, second = small_plan(spec), small_plan(spec, attempt=2)
    charge = site.gate.charge(first)
    vector = site.contribute(first)
    again = site.restart()
    assert again.gate.charge(second) == charge
    assert (again.contribute(second, change=CHANGE * 2) == vector).all()
    assert again.computed == 0


def test_a_sealed_update_of_an_aborted_attempt_is_not_sent_again(site, spec):
    first, second = small_plan(spec), small_plan(spec, attempt=2)
    charge = site.gate.charge(first)
    vector = site.contribute(first)
    site.seal(first)
    again = site.restart()
    assert again.gate.charge(second) != charge
    assert (again.contribute(second, change=CHANGE * 2) != vector).any()
    assert again.computed == 1


def test_an_update_that_a_later_attempt_sealed_is_not_sent_a_third_time(site, spec):
    # Two sums of the same vectors over different cohorts differ by one site's vector.
    first, second, third = (small_plan(spec, attempt=n) for n in (1, 2, 3))
    charge = site.gate.charge(first)
    vector = site.contribute(first)
    site.gate.charge(second)
    site.contribute(second)
    site.seal(second)
    again = site.restart()
    assert again.gate.charge(third) != charge
    assert (again.contribute(third, change=CHANGE * 2) != vector).any()
    assert again.computed == 1


def test_an_attempt_that_was_sealed_is_over_for_this_site(site, spec):
    first, second = small_plan(spec), small_plan(spec, attempt=2)
    site.gate.charge(first)
    site.contribute(first)
    site.gate.charge(second)
    site.contribute(second)
    site.seal(second)
    before = site.intents()
    with pytest.raises(RoundAborted, match="seals once"):
        site.gate.charge(second)
    with pytest.raises(RoundAborted, match="seals once"):
        site.contribute(second)
    assert site.intents() == before


def test_another_base_model_is_another_release_with_its_own_charge(site, spec):
    first, other = small_plan(spec), small_plan(spec, attempt=2, base_model="cd" * 32)
    charge = site.gate.charge(first)
    site.contribute(first)
    assert site.gate.charge(other) != charge
    site.contribute(other)
    assert site.computed == 2


def test_a_vector_that_counted_is_forgotten_and_never_computed_again(site, spec):
    plan = small_plan(spec)
    site.gate.charge(plan)
    site.contribute(plan)
    site.gate.finish(plan)
    with pytest.raises(OutboxError, match="forgotten"):
        site.restart().contribute(plan)


def test_forgetting_covers_the_earlier_attempts_of_the_round(site, spec):
    first, second = small_plan(spec), small_plan(spec, attempt=2)
    site.contribute(first)
    site.seal(first)
    site.contribute(second)
    site.gate.finish(second)
    assert list(site.outbox.folder.rglob("*.entry")) == []


def test_a_run_cannot_charge_more_attempts_than_its_noise_was_calibrated_for(tmp_path, spec):
    site = Site(tmp_path, epsilon=16.0)
    plans = [small_plan(spec, attempt=n) for n in range(1, 5)]
    for plan in plans[:3]:
        site.gate.charge(plan)
        site.contribute(plan)
        site.seal(plan)
    before = site.intents()
    with pytest.raises(BudgetExhausted, match="declared"):
        site.gate.charge(plans[3])
    assert site.intents() == before


def test_what_leaves_is_written_into_the_budget_before_it_does(site, spec):
    plan = small_plan(spec)
    site.gate.charge(plan)
    site.gate.patients(plan, PATIENTS)
    vector = site.contribute(plan)
    site.gate.spend(plan, vector)
    digests = {release.intent: release.sha256 for release in site.budget.releases()}
    assert digests[f"small/1/1/{'ab' * 32}"] == hashlib.sha256(vector.tobytes()).hexdigest()
    assert set(digests) == {"small/count", f"small/1/1/{'ab' * 32}"}


def test_other_bytes_do_not_leave_under_the_same_charge(site, spec):
    plan = small_plan(spec)
    site.gate.charge(plan)
    site.gate.patients(plan, PATIENTS)
    site.gate.spend(plan, site.contribute(plan))
    with pytest.raises(BudgetError, match="other bytes"):
        site.gate.spend(plan, np.zeros(3, np.float32))


def test_a_vector_whose_count_was_never_stored_does_not_leave(site, spec):
    plan = small_plan(spec)
    site.gate.charge(plan)
    with pytest.raises(RoundAborted, match="not in the outbox"):
        site.gate.spend(plan, site.contribute(plan))


def test_every_patient_stands_in_one_bin_of_label_and_score():
    found = Evaluation(
        losses_U=np.zeros(5),
        scores_U=np.array([0.0, 0.999, 1.0, np.nan, 0.5]),
        labels_U=np.array([0, 0, 1, 1, 1], np.float32),
    )
    counts = score_counts(found).reshape(LABELS, SCORE_BINS)
    assert counts.sum() == 5
    assert (counts[0, 0], counts[0, -1]) == (1, 1)
    assert (counts[1, 0], counts[1, SCORE_BINS // 2], counts[1, -1]) == (1, 1, 1)


def counts_of(vector, plan):
    return vector[PARAMETERS : PARAMETERS + LABELS * SCORE_BINS] * plan.weight_cap


def test_patients_by_score_are_exact_without_privacy_and_noised_with_it(tmp_path, spec, open_spec):
    (tmp_path / "open").mkdir()
    open_plan = small_plan(open_spec)
    open_plan = replace(open_plan, privacy=replace(open_plan.privacy, auc_epsilon=0.05))
    exact = Site(tmp_path / "open", require_dp=False).contribute(open_plan)
    assert counts_of(exact, open_plan).sum() == pytest.approx(PATIENTS, abs=1e-3)
    plan = small_plan(spec)
    plan = replace(plan, privacy=replace(plan.privacy, auc_epsilon=0.05))
    noised = Site(tmp_path).contribute(plan)
    # Forty draws of scale 20: that none is above 0 in size has probability 0.025 ** 40.
    assert np.abs(counts_of(noised, plan) - counts_of(exact, open_plan)).max() > 0.5


def test_loads_ride_in_the_vector(tmp_path, spec):
    plan = small_plan(spec)
    privacy = replace(plan.privacy, load_noise_multiplier=30.0)
    loads = np.array([10.0, 30.0], np.float32)
    vector = Site(tmp_path).contribute(replace(plan, privacy=privacy), loads=loads)
    assert vector[PARAMETERS:-2] * plan.weight_cap * plan.training.local_steps == pytest.approx(
        loads
    )
