import hashlib
import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.ledger.store import open_ledger
from coordinator.wire.channel import (
    COORDINATOR,
    ChannelTimeout,
    SessionSpec,
    SessionTicket,
    TransferError,
)
from coordinator.wire.connect import open_channel
from coordinator.wire.memory_channel import start_relay
from coordinator.wire.plan import PlanError, sign_plan
from coordinator.wire.records import RoundTask
from model.build import build_model
from model.parameters import model_to_vector, save_model
from participant.budget import SiteBudget
from participant.config import load_site
from participant.errors import ConfigError, RoundAborted
from participant.participation import Participation
from sims.site_home import make_site_home, put_data
from tests.sims.small_federation import SITES, WITH_DP, small_plan, small_scenario

TICKETS = {name: hashlib.sha256(name.encode()).digest() for name in (*SITES, COORDINATOR)}
_names = itertools.count(1)


class Rig:
    """The home of the site "anna", an exchange, and a coordinator that a test plays."""

    def __init__(self, folder, **changes):
        self.scenario = small_scenario(folder / "scenario", **(WITH_DP | changes))
        self.spec = self.scenario.spec
        self.home = folder / "anna"
        self.key = Ed25519PrivateKey.generate()
        self.models = folder / "models"
        self.models.mkdir()
        name = f"participation-{next(_names)}"
        self.relay = start_relay(name, models=self.models)
        self.address = f"memory:{name}"
        with open_ledger(f"sqlite:///{folder / 'ledger.db'}") as ledger:
            make_site_home(
                self.home,
                site="anna",
                exchange=self.address,
                coordinator_key=self.key.public_key().public_bytes_raw(),
                ledger=ledger,
                node_id=2,
                spec=self.spec,
            )
            (member,) = ledger.sites.members()
        put_data(self.home, table=self.scenario.train["anna"], schema=self.scenario.schema_path)
        self.keys = {"anna": bytes.fromhex(member.signing_key)} | {
            site: Ed25519PrivateKey.generate().public_key().public_bytes_raw() for site in SITES[1:]
        }
        weights = model_to_vector(build_model(self.spec.model, self.spec.table, seed=1))
        model = save_model(self.models, weights, self.spec.model, self.spec.table)
        self.plan = small_plan(
            self.spec,
            base_model=model.stem,
            base_model_bytes=model.stat().st_size,
            now=datetime.now(UTC),
        )
        self.site = Participation(self.home)

    def task(self, plan=None, *, key=None, keys=None):
        signed = sign_plan(plan or self.plan, key or self.key)
        return RoundTask(plan=signed, ticket=TICKETS["anna"], keys=keys or self.keys)

    def open_session(self, plan=None):
        """Opens the attempt's session; the coordinator's seat in it."""
        plan = plan or self.plan
        self.relay.open_session(
            SessionSpec(
                session_id=plan.session_id,
                tickets={n: hashlib.sha256(ticket).digest() for n, ticket in TICKETS.items()},
                models=(plan.base_model,),
                silence_seconds=20.0,
                deadline_seconds=60.0,
            )
        )
        ticket = SessionTicket(
            session_id=plan.session_id, endpoint=COORDINATOR, ticket=TICKETS[COORDINATOR]
        )
        return open_channel(self.address, session=ticket, credentials=None)

    def intents(self):
        budget = SiteBudget(self.home / "budget.db", load_site(self.home).budget)
        return [charge.intent for charge in budget.charges()]


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    rig.relay.close()


def frames(channel):
    """Everything that has arrived."""
    seen = []
    while True:
        try:
            seen.append(channel.receive(timeout_seconds=0.05))
        except ChannelTimeout:
            return seen


def changed(plan, **fields):
    """The plan with fields changed, those of its parts too: `training__local_steps=0`."""
    for path, value in fields.items():
        part, _, name = path.rpartition("__")
        inner = replace(getattr(plan, part), **{name: value}) if part else value
        plan = replace(plan, **{part or name: inner})
    return plan


def test_a_plan_that_another_key_signed_is_refused_before_anything_happens(rig):
    with rig.open_session() as coordinator:
        with pytest.raises(PlanError, match="pinned"):
            rig.site.take_part(rig.task(key=Ed25519PrivateKey.generate()))
        assert frames(coordinator) == []
    assert rig.intents() == []


OUTSIDE_THE_POLICY = [
    ({"secure_sum__scheme": "plain"}, "secure_sum_schemes"),
    ({"secure_sum__quorum": 2, "quorum": 2}, "minimum_quorum"),
    ({"quorum": 4}, "plan.quorum"),
    ({"cohort": SITES[1:]}, "plan.cohort"),
    ({"cohort": SITES[:2]}, "minimum_cohort"),
    ({"cohort": tuple(reversed(SITES))}, "plan.cohort"),
    ({"deadline": datetime(2020, 1, 1, tzinfo=UTC)}, "plan.deadline"),
    ({"deadline": datetime(2099, 1, 1)}, "plan.deadline"),  # noqa: DTZ001 - that is the fault
    ({"table__version": 2}, "schemas"),
    ({"rounds_charged": 1001}, "max_rounds"),
    ({"round": 0}, "plan.round"),
    ({"attempt": 0}, "plan.round"),
    ({"training__local_steps": 10_001}, "max_local_steps"),
    ({"training__local_steps": 0}, "plan.training"),
    ({"training__learning_rate": -1.0}, "plan.training"),
    ({"update_range": 0.0}, "plan.contribution"),
    ({"weight_cap": 0}, "plan.contribution"),
    ({"base_model_bytes": 1 << 40}, "max_model_bytes"),
    ({"privacy__mechanism": "none"}, "require_dp"),
    ({"seed": 1}, "allow_fixed_seed"),
    ({"privacy__clipping_norm": 0.0}, "plan.privacy"),
    ({"privacy__delta": 1e-3}, "max_delta"),
    ({"privacy__noise_multiplier": 0.1}, "minimum_noise_multiplier"),
    ({"privacy__epsilon": 9.0}, "max_epsilon"),
    ({"privacy__unit": "customer"}, "plan.unit"),
    ({"privacy__auc_epsilon": -1.0}, "plan.privacy"),
    ({"training__balance_loss": -1.0}, "plan.training"),
    ({"privacy__mechanism": "distributed-dp"}, "plan.distributed"),
    ({"privacy__epsilon": 0.5}, "plan.epsilon"),
    ({"rounds_charged": 50}, "max_epsilon"),
]


@pytest.mark.parametrize(("fields", "clause"), OUTSIDE_THE_POLICY)
def test_a_plan_outside_the_policy_is_refused_by_its_clause_and_costs_nothing(rig, fields, clause):
    plan = changed(rig.plan, **fields)
    with rig.open_session(plan) as coordinator:
        assert rig.site.take_part(rig.task(plan)) == "refused"
        first, *others = frames(coordinator)
        assert first.kind == "refuse"
        assert f'clause "{clause}"' in first.payload.decode()
        assert {frame.kind for frame in others} <= {"lost"}
    assert rig.intents() == []
    assert list((rig.home / "outbox").rglob("*.entry")) == []
    assert list((rig.home / "models").iterdir()) == []


CONTRADICTORY = [
    ({"privacy__noise_multiplier": 0.0}, "noise_multiplier=0"),
    ({"privacy__noise_multiplier": -1.0}, "noise_multiplier=-1"),
    ({"training__sample_rate": 1.5}, "sample_rate=1.5"),
    ({"training__sample_rate": 0.0}, "plan.training"),
    ({"training__local_steps": -1}, "steps=-"),
    ({"privacy__count_epsilon": -0.1}, "count -0.1"),
    ({"privacy__count_epsilon": 0.0}, "count_epsilon"),
    ({"secure_sum__dimension": 5}, "dimension"),
]


@pytest.mark.parametrize(("fields", "named"), CONTRADICTORY)
def test_a_plan_that_contradicts_itself_is_refused_and_costs_nothing(rig, fields, named):
    plan = changed(rig.plan, **fields)
    with rig.open_session(plan) as coordinator:
        assert rig.site.take_part(rig.task(plan)) == "refused"
        first = frames(coordinator)[0]
        assert first.kind == "refuse"
        assert named in first.payload.decode()
    assert rig.intents() == []


def test_keys_for_another_cohort_are_refused(rig):
    keys = {site: key for site, key in rig.keys.items() if site != "dora"}
    with rig.open_session() as coordinator:
        assert rig.site.take_part(rig.task(keys=keys)) == "refused"
        assert b"not those of the plan's cohort" in frames(coordinator)[0].payload
    assert rig.intents() == []


def test_a_peer_that_shows_another_key_than_before_is_refused(rig):
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    first = changed(
        rig.plan, deadline=datetime.now(UTC) + timedelta(seconds=0.5), silence_seconds=0
    )
    with rig.open_session(first), pytest.raises(RoundAborted):
        rig.site.take_part(rig.task(first))
    before = rig.intents()
    second = replace(rig.plan, attempt=2)
    with rig.open_session(second) as coordinator:
        assert rig.site.take_part(rig.task(second, keys=rig.keys | {"dora": stranger})) == "refused"
        assert b'Site "dora" shows another signing key' in frames(coordinator)[0].payload
    assert rig.intents() == before


def test_a_ticket_for_another_session_opens_nothing_and_costs_nothing(rig):
    rig.open_session()
    task = replace(rig.task(), ticket=bytes(32))
    with pytest.raises(Exception, match=r"ticket|refused"):
        rig.site.take_part(task)
    assert rig.intents() == []


def test_a_coordinator_that_falls_silent_ends_the_attempt_and_the_charge_stays(rig):
    soon = datetime.now(UTC) + timedelta(seconds=1.0)
    plan = changed(rig.plan, deadline=soon, silence_seconds=0.0)
    with rig.open_session(plan) as coordinator:
        with pytest.raises(RoundAborted, match="the budget keeps its charge"):
            rig.site.take_part(rig.task(plan))
        assert [frame.kind for frame in frames(coordinator)][:2] == ["hello", "receipt"]
    assert len(rig.intents()) == 2


def test_a_model_that_cannot_be_fetched_costs_nothing(rig):
    (rig.models / f"{rig.plan.base_model}.safetensors").unlink()
    with rig.open_session(), pytest.raises(TransferError):
        rig.site.take_part(rig.task())
    assert rig.intents() == []


def test_a_charge_is_found_again_after_a_crash_and_never_made_twice(rig):
    rig.site._gate.charge(rig.plan)
    charged = rig.intents()
    again = Participation(rig.home)  # the process died before anything was released, and came back
    again._gate.charge(rig.plan)
    assert rig.intents() == charged


def test_a_contract_without_room_is_told_in_one_sentence_without_a_number_from_records(rig):
    path = rig.home / "site.toml"
    path.write_text(path.read_text().replace("epsilon = 8.0", "epsilon = 0.5"))
    site = Participation(rig.home)
    with rig.open_session() as coordinator:
        assert site.take_part(rig.task()) == "refused"
        kinds = [frame.kind for frame in frames(coordinator)]
    assert kinds[:2] == ["hello", "refuse"]
    assert rig.intents() == []


def test_an_engine_that_cannot_clip_patients_with_several_rows_is_refused_before_any_charge(rig):
    site = rig.home / "site.toml"
    text = site.read_text().replace('dp_engine = "bookkeeping"', 'dp_engine = "opacus"')
    site.write_text(text.replace("# patient_column", "patient_column"))
    table = rig.home / "patients.csv"
    header, *rows = table.read_text().splitlines()
    joined = [f"{row},{place // 2}" for place, row in enumerate(rows)]
    table.write_text("\n".join([f"{header},patient_id", *joined]) + "\n")
    with pytest.raises(ConfigError, match="one row per patient"):
        Participation(rig.home)
    assert rig.intents() == []
