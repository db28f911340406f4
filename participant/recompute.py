"""Recomputes a privacy certificate offline, with none of the code that made it: to be read, then run.

    python recompute.py certificate.json [--key HEX]

It needs Python, `cryptography` and Google's `dp_accounting`, and no Concord. In this order:
1. signature  an Ed25519 key signed exactly this statement; is it the site's? Compare the key with one you got elsewhere;
2. chain      every entry of the budget file hashes to the next, from the file's identity to the head;
3. order      times do not go back unless the administrator vouched for the clock; nothing left without a charge, and no
              run was charged more than it declared before its first release;
4. figures    epsilon of all charges, by privacy loss distributions and by Renyi divergence of the file's one order;
5. contract   what was charged, with all that the first run declared, is within epsilon and delta.

What it cannot see: whether the site recorded everything that it released. For that, read the site's code and logs.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.common import DifferentialPrivacyParameters

FORMAT = "concord/privacy-certificate/v1"
MAX_FILE_BYTES = 64 << 20
IDENTITY_LABEL = b"concord/budget-identity/v2\0"
ENTRY_LABEL = b"concord/budget-entry/v2\0"
LOSS_INTERVAL = 5e-4
"""Width of the privacy loss grid; every width gives an upper bound, a wider one a higher."""
LOOSENESS = 0.02
"""By how much of itself, and at least of 1, a stated figure may lie above the recomputed one: an upper bound that is less
tight, such as dp-accounting's Renyi divergences of broken order and wider grids. It may not lie below."""
LAST_DIGITS = 1e-4
"""By how much two programs differ on the same grid."""
INTEGRATION_STEPS = 64
"""Points of the integral per standard deviation of the noise."""
TAIL = 14.0
"""Standard deviations at which the integral ends; what lies beyond is below 1e-40."""

Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was recomputed."""

    name: str
    holds: bool
    found: str


def recompute(text: bytes, *, key: str | None = None) -> list[Check]:
    """All checks of a certificate, in order; it holds if all of them do.

    Args:
        text: the certificate's bytes.
        key: the site's public signing key in hex, as known from elsewhere; None: the one in the certificate.

    Raises:
        ValueError, KeyError, TypeError: it is no certificate of a known form.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"A certificate has at most {MAX_FILE_BYTES} bytes, found {len(text)}.")
    certificate = json.loads(text)
    if certificate["format"] != FORMAT:
        raise ValueError(f"Expected a certificate of the form {FORMAT}.")
    statement = certificate["statement"]
    return [
        _signature(certificate, key),
        _chain(statement),
        _order(statement),
        *_figures(statement),
        _contract(statement),
    ]


def canonical(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, ASCII, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _signature(certificate: Fields, key: str | None) -> Check:
    shown = str(certificate["public_key"])
    message = FORMAT.encode() + b"\0" + canonical(certificate["statement"]).encode()
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(shown))
        public.verify(bytes.fromhex(certificate["signature"]), message)
        is_signed = True
    except InvalidSignature:
        is_signed = False
    holds = is_signed and key in (None, shown)
    found = f"signed by the holder of key {shown}" if is_signed else "the signature is wrong"
    return Check(
        name="signature",
        holds=holds,
        found=found if holds or not is_signed else f"{found}, not {key}",
    )


def _chain(statement: Fields) -> Check:
    chain = hashlib.sha256(IDENTITY_LABEL + canonical(statement["identity"]).encode()).digest()
    for number, entry in enumerate(statement["entries"], start=1):
        fields = [entry[name] for name in ("number", "kind", "name", "content", "at_microseconds")]
        chain = hashlib.sha256(ENTRY_LABEL + chain + canonical(fields).encode()).digest()
        if entry["number"] != number or entry["chain"] != chain.hex():
            return Check(name="chain", holds=False, found=f"entry {number} breaks it")
    holds = statement["head"] == chain.hex()
    return Check(
        name="chain",
        holds=holds,
        found=f"{len(statement['entries'])} entries to head {chain.hex()}",
    )


def _order(statement: Fields) -> Check:
    latest, seen = 0, set[tuple[str, str]]()
    left: dict[str, Counter[str]] = {}
    for entry in statement["entries"]:
        kind, name, content = entry["kind"], entry["name"], json.loads(entry["content"])
        problem = ""
        if (kind, name) in seen or kind not in ("programme", "charge", "release", "clock"):
            problem = "is of an unknown kind or comes twice"
        if entry["at_microseconds"] < latest and kind != "clock":
            problem = "is older than the one before"
        if kind == "programme":
            left[name] = _amounts(content["events"])
        if kind == "charge" and content["programme"] is not None:
            remaining = left.get(content["programme"], Counter())
            remaining.subtract(_amounts(content["events"]))
            if min(remaining.values(), default=0) < 0:
                problem = "goes beyond what its run declared"
        if kind == "release" and ("charge", name) not in seen:
            problem = "left without a charge"
        if problem:
            return Check(name="order", holds=False, found=f"entry {entry['number']} {problem}")
        seen.add((kind, name))
        latest = entry["at_microseconds"]
    counts = Counter(kind for kind, _ in seen)
    found = ", ".join(f"{kind}s: {counts[kind]}" for kind in ("programme", "charge", "release"))
    return Check(name="order", holds=True, found=found)


def _figures(statement: Fields) -> Iterator[Check]:
    charged = [event for _, event in _charged(statement)]
    stated = statement["figures"]
    for name, epsilon in (
        ("epsilon", pld_epsilon(charged, _delta(statement))),
        ("filter_epsilon", rdp_epsilon(charged, _delta(statement), _rdp_order(statement))),
    ):
        yield Check(
            name=name,
            holds=stated[name] is None or _is_bound(stated[name], epsilon),
            found=f"recomputed {epsilon:.4f}, stated {stated[name]}",
        )


def _is_bound(stated: float, epsilon: float) -> bool:
    unit = max(1.0, epsilon)
    return epsilon - LAST_DIGITS * unit <= stated <= epsilon + LOOSENESS * unit


def _contract(statement: Fields) -> Check:
    """The admission rule: everything that counts fits the filter, or a first programme alone fits by its PLD."""
    contract, entries = statement["contract"], statement["entries"]
    first = entries[0]["name"] if entries and entries[0]["kind"] == "programme" else None
    declared = json.loads(entries[0]["content"])["events"] if first is not None else []
    others = [event for run, event in _charged(statement) if first is None or run != first]
    epsilon = rdp_epsilon([*declared, *others], _delta(statement), _rdp_order(statement))
    how = "by the filter, every adaptive choice included"
    if epsilon > contract["epsilon"] and not others:
        epsilon, how = (
            pld_epsilon(declared, _delta(statement)),
            f"by the whole declaration of {first}",
        )
    terms = (
        f"delta {contract['delta']:g}, unit {contract['unit']}, adjacency {contract['adjacency']}"
    )
    return Check(
        name="contract",
        holds=epsilon <= contract["epsilon"] + LAST_DIGITS,
        found=f"epsilon {epsilon:.4f} of {contract['epsilon']:g} ({terms}), {how}",
    )


def _charged(statement: Fields) -> Iterator[tuple[str | None, Fields]]:
    """Run and event of everything charged."""
    for entry in statement["entries"]:
        if entry["kind"] == "charge":
            content = json.loads(entry["content"])
            for event in content["events"]:
                yield content["programme"], event


def _delta(statement: Fields) -> float:
    """What is left of delta after the imperfections of the noise samplers."""
    return float(statement["contract"]["delta"]) - float(statement["sampling_remainder"])


def _rdp_order(statement: Fields) -> float:
    return float(statement["identity"]["rdp_order"])


def _amounts(events: list[Fields]) -> Counter[str]:
    """Mechanism to number of steps or releases, free ones left out."""
    found: Counter[str] = Counter()
    for event in events:
        counted = "steps" if "steps" in event else "count"
        is_free = event.get("sample_rate") == 0 or event.get("epsilon") == 0
        if event[counted] and not is_free:
            found[canonical(event | {counted: 1})] += event[counted]
    return found


def pld_epsilon(events: list[Fields], delta: float) -> float:
    """Epsilon of all events together by dp-accounting's privacy loss distributions."""
    total: pld.PrivacyLossDistribution | None = None
    for text, count in sorted(_amounts(events).items()):
        part = _losses(json.loads(text)).self_compose(count)
        total = part if total is None else total.compose(part)
    return 0.0 if total is None else float(total.get_epsilon_for_delta(delta))


def rdp_epsilon(events: list[Fields], delta: float, order: float) -> float:
    """Epsilon of all events together by their Renyi divergence at one order (Canonne, Kamath, Steinke 2020, Prop. 12)."""
    found = _amounts(events)
    if not found:
        return 0.0
    divergence = sum(count * _divergence(json.loads(text), order) for text, count in found.items())
    return max(
        0.0,
        divergence + math.log1p(-1.0 / order) - (math.log(delta) + math.log(order)) / (order - 1.0),
    )


def _losses(event: Fields) -> pld.PrivacyLossDistribution:
    match event["kind"]:
        case "subsampled-gaussian/v1":
            return pld.from_gaussian_mechanism(
                event["noise_multiplier"],
                sampling_prob=event["sample_rate"],
                value_discretization_interval=LOSS_INTERVAL,
            )
        case "truncated-subsampled-gaussian/v1":
            return pld.from_truncated_subsampled_gaussian_mechanism(
                dataset_size=event["units"],
                sampling_probability=event["sample_rate"],
                truncated_batch_size=event["largest_batch"],
                noise_multiplier=event["noise_multiplier"],
                value_discretization_interval=LOSS_INTERVAL,
            )
        case "discrete-laplace/v1":
            return pld.from_discrete_laplace_mechanism(
                event["epsilon"] / event["sensitivity"],
                event["sensitivity"],
                value_discretization_interval=LOSS_INTERVAL,
            )
        case "randomised-response/v1":
            return pld.from_privacy_parameters(
                DifferentialPrivacyParameters(event["epsilon"], 0.0),
                value_discretization_interval=LOSS_INTERVAL,
            )
    raise ValueError(f"The event kind {event['kind']} is not known here.")


def _divergence(event: Fields, order: float) -> float:
    """Renyi divergence of one step or release."""
    match event["kind"]:
        case "subsampled-gaussian/v1":
            return _gaussian_divergence(event["sample_rate"], event["noise_multiplier"], order)
        case "truncated-subsampled-gaussian/v1":
            return _truncated_divergence(event, order)
        case "discrete-laplace/v1":
            return _laplace_divergence(event["epsilon"], event["sensitivity"], order)
        case "randomised-response/v1":
            return _pure_divergence(event["epsilon"], order)
    raise ValueError(f"The Renyi divergence of {event['kind']} is not known here.")


def _gaussian_divergence(rate: float, noise: float, order: float) -> float:
    """Of (1 - q) N(0, s^2) + q N(1, s^2) from N(0, s^2), by the trapezoidal rule (Mironov, Talwar, Zhang 2019, eq. 2)."""
    if rate == 1.0:
        return order / (2.0 * noise**2)
    width = noise / INTEGRATION_STEPS
    lowest, highest = -TAIL * noise, order + TAIL * noise
    logs = []
    for step in range(math.ceil((highest - lowest) / width) + 1):
        x = lowest + step * width
        shift = math.log(rate) + (2.0 * x - 1.0) / (2.0 * noise**2)
        ratio = _log_add(math.log1p(-rate), shift)
        logs.append(order * ratio - x * x / (2.0 * noise**2))
    moment = _log_sum(logs) + math.log(width) - 0.5 * math.log(2.0 * math.pi * noise**2)
    return max(0.0, moment / (order - 1.0))


def _truncated_divergence(event: Fields, order: float) -> float:
    """Of two cases, told apart by the attacker: the batch has room, or another patient is pushed out of it."""
    rate, noise = event["sample_rate"], event["noise_multiplier"]
    usual = (order - 1.0) * _gaussian_divergence(rate, noise, order)
    is_full = _binomial_tail(event["largest_batch"], event["units"] - 1, rate)
    if is_full == 0.0:
        return usual / (order - 1.0)
    replaced = math.log(is_full) + (order - 1.0) * 2.0 * order / noise**2
    has_room = usual + math.log1p(-is_full) if is_full < 1.0 else -math.inf
    return _log_add(has_room, replaced) / (order - 1.0)


def _binomial_tail(least: int, trials: int, rate: float) -> float:
    """Probability of at least that many successes."""
    if rate == 1.0 or least <= 0:
        return float(least <= trials)
    deviation = math.sqrt(trials * rate * (1.0 - rate))
    last = min(trials, math.ceil(max(least, trials * rate) + 40.0 * deviation + 100.0))
    logs = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(rate)
        + (trials - k) * math.log1p(-rate)
        for k in range(least, last + 1)
    )
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def _laplace_divergence(epsilon: float, sensitivity: int, order: float) -> float:
    """Of P(k) ~ exp(-a |k|) from P(k - sensitivity), a = epsilon / sensitivity: three geometric sums."""
    rate = epsilon / sensitivity
    below = (order - 1.0) * epsilon
    above = -order * epsilon
    outside = _log_add(below, above) - math.log(-math.expm1(-rate))
    between = [
        -rate * ((2.0 * order - 1.0) * k + (1.0 - order) * sensitivity)
        for k in range(1, sensitivity)
    ]
    normalised = _log_sum([outside, *between]) + math.log(math.tanh(rate / 2.0))
    return normalised / (order - 1.0)


def _pure_divergence(epsilon: float, order: float) -> float:
    """The largest of any epsilon-DP release: randomised response over two answers."""
    moment = _log_add(order * epsilon, (1.0 - order) * epsilon) - math.log1p(math.exp(epsilon))
    return moment / (order - 1.0)


def _log_add(first: float, second: float) -> float:
    high, low = max(first, second), min(first, second)
    return high + math.log1p(math.exp(low - high))


def _log_sum(logs: list[float]) -> float:
    high = max(logs)
    return high + math.log(math.fsum(math.exp(log - high) for log in logs))


def main() -> int:
    """The command line; 0 if the certificate holds, 1 if not."""
    parser = argparse.ArgumentParser(description="Recompute a privacy certificate offline.")
    parser.add_argument("certificate", type=Path)
    parser.add_argument("--key", help="the site's public signing key in hex, known from elsewhere")
    arguments = parser.parse_args()
    checks = recompute(arguments.certificate.read_bytes(), key=arguments.key)
    for check in checks:
        sys.stdout.write(f"{'holds' if check.holds else 'FAILS'}  {check.name}: {check.found}\n")
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
