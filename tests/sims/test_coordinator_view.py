"""What the coordinator process can make of everything that reaches it in a run, and what it cannot.

The observer of a rehearsal sees what the exchange and Flower hand to the coordinator. The truth, each site's own
vector, is read from the site's outbox while it uploads: nothing of ours is replaced or patched. One attack is run on
the scheme `plain`, where it must find every vector exactly, and on `mask`, where it must find none.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest

from coordinator.ledger.store import open_ledger
from coordinator.wire.channel import COORDINATOR
from privacy.fixed_point import FixedPoint
from privacy.packing import unpack
from privacy.secagg import shamir
from privacy.secagg.envelopes import SIGNATURE_BYTES, scope_of, stretch
from privacy.secagg.masking import apply_streams
from privacy.secagg.messages import FRAME_HEADER, encode_sites
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import SumContext
from sims.grid import MESSAGE_KIND
from sims.rehearsal import rehearse
from tests.sims.small_federation import SITES, small_scenario

ROUNDS = 2
SHARE_BYTES = 32
# Masked words are uniform and independent of the vector, so a correlation over P coordinates is a weighted sum of P
# independent values within sqrt(3) of 0. Hoeffding: P(|r| > 12 / sqrt(P)) <= 2 exp(-12**2 / 6) = 8e-11 for one
# candidate, whatever the vector looks like. Below 1000 are tried: error rate 1e-7.
DEVIATIONS = 12


@dataclass
class Wiretap:
    """All that the coordinator receives, and what no coordinator sees: the sites' own vectors."""

    folder: object
    received: list = field(default_factory=list)
    truth: dict = field(default_factory=dict)

    def __call__(self, receiver, frame):
        if receiver != COORDINATOR:
            return
        self.received.append(frame)
        if frame.kind == "seal":
            number, vector = newest_vector(self.folder / frame.sender)
            self.truth[number, frame.sender] = vector


def newest_vector(home):
    """Round and contribution that the site has stored to be sent."""
    found = {}
    for path in (home / "outbox").rglob("*.entry"):
        header, payload = path.read_bytes().split(b"\n", 1)
        name = json.loads(header)["name"]
        if name.startswith("update/"):
            found[int(name.split("/")[1])] = np.frombuffer(payload, np.float32)
    number = max(found)
    return number, found[number]


@dataclass
class View:
    """The received messages of one round, as a coordinator reads them."""

    plan: SumPlan
    context: SumContext
    hellos: dict
    words: dict
    releases: dict

    def scope(self):
        roster = encode_sites(self.hellos)
        return scope_of(self.plan, self.context).with_roster(roster)

    def shares_of(self, site):
        """Every share of the site's secret that was released, with the point it was dealt for."""
        place = slice(SHARE_BYTES * SITES.index(site), SHARE_BYTES * (SITES.index(site) + 1))
        return {
            SITES.index(sender) + 1: int.from_bytes(body[place], "big")
            for sender, body in self.releases.items()
        }

    def without_self_mask(self, site):
        """The site's words less the self mask that the released shares restore, where any were released."""
        words = self.words[site].copy()
        if all(len(body) == 0 for body in self.releases.values()):
            return words
        shares = self.shares_of(site)
        secret = shamir.combine(list(shares.values()), shamir.weights_at_zero(list(shares)))
        seed = secret.to_bytes(SHARE_BYTES, "big")
        stream = stretch(seed, label="self-mask", scope=self.scope(), site=site, size=16)
        apply_streams(words, plus=[], minus=[stream])
        return words


def view_of(number, ledger, received):
    """The round's view; a site's frames of a kind come in the order of the rounds."""
    frames = defaultdict(list)
    for frame in received:
        frames[frame.sender, frame.kind].append(frame.payload)
    payload, _ = ledger.rounds.signed_plan("small", round=number, attempt=1)
    plan = json.loads(payload)
    context = SumContext(
        run_id=plan["run_id"],
        round=number,
        attempt=1,
        plan_digest=hashlib.sha256(payload).digest(),
        model=plan["base_model"],
    )
    said = {
        kind: {s: frames[s, kind][number - 1] for s in SITES}
        for kind in ("hello", "seal", "release")
    }
    head = SIGNATURE_BYTES + FRAME_HEADER.size
    secure_sum = SumPlan(**plan["secure_sum"])
    bits, dimension = secure_sum.encoding.modulus_bits, secure_sum.dimension
    return View(
        plan=secure_sum,
        context=context,
        hellos=said["hello"],
        words={site: unpack(said["seal"][site][head:], bits, dimension) for site in SITES},
        releases={site: frame[head:] for site, frame in said["release"].items()},
    )


def attack(seen, number, site):
    """Every guess at the site's integers in that round that all the material allows us to form."""
    view, others = seen[number - 1], [name for name in SITES if name != site]
    stripped = {name: view.without_self_mask(name) for name in SITES}
    total = np.sum(list(stripped.values()), axis=0, dtype=np.uint32)
    guesses = [view.words[site], stripped[site]]
    guesses += [total - stripped[name] for name in others]
    guesses += [total - view.words[name] for name in others]
    guesses.append(total - np.sum([stripped[name] for name in others], axis=0, dtype=np.uint32))
    guesses += [stripped[site] - stripped[name] for name in others]
    guesses += [stripped[site] + stripped[name] for name in others]
    for other in seen:
        if other is not view:
            guesses.append(view.words[site] - other.words[site])
            guesses.append(stripped[site] - other.without_self_mask(site))
            guesses.append(view.words[site] - other.without_self_mask(site))
    return [view.plan.encoding.signed(guess.copy()) for guess in guesses]


def steps(encoding, vector):
    """The vector in steps of the encoding, before it is rounded to whole ones."""
    return np.clip(vector.astype(np.float64) * encoding.scale, -encoding.limit, encoding.limit)


def is_rounded(integers, exact):
    """Whether every integer is a neighbour of the exact number."""
    return bool((np.abs(integers - exact) < 1).all())


def correlation(guess, vector):
    return abs(float(np.corrcoef(guess.astype(np.float64), vector)[0, 1]))


@dataclass
class Recording:
    seen: list
    truth: dict
    received: list
    encoding: FixedPoint


def record(folder, scheme):
    scenario = small_scenario(
        folder / "scenario",
        rounds=ROUNDS,
        secure_sum={"scheme": scheme},
        model={"width": 16, "expert_width": 16},
    )
    tap = Wiretap(folder / "run")
    rehearse(scenario, folder / "run", observer=tap)
    with open_ledger(f"sqlite:///{folder / 'run' / 'coordinator' / 'ledger.db'}") as ledger:
        seen = [view_of(number, ledger, tap.received) for number in range(1, ROUNDS + 1)]
    return Recording(
        seen=seen, truth=tap.truth, received=tap.received, encoding=seen[0].plan.encoding
    )


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return record(tmp_path_factory.mktemp("mask"), "mask")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return record(tmp_path_factory.mktemp("plain"), "plain")


EVERYBODY = [(number, site) for number in range(1, ROUNDS + 1) for site in SITES]


@pytest.mark.parametrize(("number", "site"), EVERYBODY)
def test_in_the_clear_the_attack_finds_every_vector_exactly(plain, number, site):
    exact = steps(plain.encoding, plain.truth[number, site])
    assert any(is_rounded(guess, exact) for guess in attack(plain.seen, number, site))


@pytest.mark.statistical
@pytest.mark.parametrize(("number", "site"), EVERYBODY)
def test_under_masks_the_same_attack_finds_no_vector(masked, number, site):
    vector = masked.truth[number, site]
    found = max(correlation(guess, vector) for guess in attack(masked.seen, number, site))
    assert found < DEVIATIONS / np.sqrt(len(vector))


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_the_attack_on_masks_is_real_it_opens_the_sum_and_nothing_less(masked, number):
    view, encoding = masked.seen[number - 1], masked.encoding
    stripped = [view.without_self_mask(site) for site in SITES]
    exact = [steps(encoding, masked.truth[number, site]) for site in SITES]
    total = encoding.signed(np.sum(stripped, axis=0, dtype=np.uint32))
    assert np.abs(total - np.sum(exact, axis=0)).max() < len(SITES)
    for left_out in range(len(SITES)):
        some = [words for place, words in enumerate(stripped) if place != left_out]
        partial = encoding.signed(np.sum(some, axis=0, dtype=np.uint32))
        known = np.sum([v for place, v in enumerate(exact) if place != left_out], axis=0)
        assert correlation(partial, known) < DEVIATIONS / np.sqrt(len(partial))


def test_both_schemes_sum_up_the_same_vectors(masked, plain):
    assert masked.truth.keys() == plain.truth.keys() == set(EVERYBODY)
    assert all((masked.truth[key] == plain.truth[key]).all() for key in EVERYBODY)


@pytest.mark.parametrize("site", SITES)
def test_outside_the_sealed_vector_there_is_no_room_for_an_update(masked, site):
    sizes = [len(f.payload) for f in masked.received if f.sender == site and f.kind != "seal"]
    assert 0 < sum(sizes) < 4 * ROUNDS * len(masked.truth[1, site]) / 2


def test_every_kind_of_message_that_reaches_the_coordinator_is_known(masked):
    kinds = {frame.kind for frame in masked.received}
    legs = {"hello", "share", "seal", "confirm", "release"}
    assert kinds == legs | {"receipt", MESSAGE_KIND}


def test_no_bytes_of_a_vector_pass_in_another_form(masked):
    everything = b"".join(frame.payload for frame in masked.received)
    for vector in masked.truth.values():
        change = vector[np.abs(vector) > 1e-3][:64]
        assert len(change) >= 16
        for value in change:
            for form in (np.float32(value).tobytes(), np.float64(value).tobytes()):
                assert everything.count(form) <= len(everything) / 2**32 * 100
