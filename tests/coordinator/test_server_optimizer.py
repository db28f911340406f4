import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedYogi
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import save

from coordinator.errors import AggregationError
from coordinator.run_spec import ServerOptimizerSpec
from coordinator.strategies import server_optimizer
from coordinator.strategies.server_optimizer import ServerOptimizer, load_moments, save_moments

ADAPTIVE = {"fedadam": FedAdam, "fedyogi": FedYogi}
FLOWERS_OWN = {"fedavg": FedAvg, **ADAPTIVE}
RANDOM = np.random.default_rng(5)
BASE = RANDOM.normal(size=50).astype(np.float32)
CHANGES = [RANDOM.normal(scale=0.1, size=50).astype(np.float32) for _ in range(4)]


@pytest.fixture(autouse=True, scope="module")
def _inside_a_flower_task():
    # Flower's messages name the task that made them; a ServerApp's process knows its own from the start.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def flowers_weights(name, changes=CHANGES):
    """What Flower's own strategy makes of two sites' replies with that mean, round after round."""
    settings = {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3} if name in ADAPTIVE else {}
    strategy = FLOWERS_OWN[name](**settings)
    weights, seen = BASE, []
    for number, change in enumerate(changes, start=1):
        if name in ADAPTIVE:
            strategy.current_arrays = {"layer": weights}
        spread = np.float32(0.5)
        replies = [reply(weights + change * (1 - spread)), reply(weights + change * (1 + spread))]
        arrays, _ = strategy.aggregate_train(number, replies)
        weights = arrays["layer"].numpy()
        seen.append(weights)
    return seen


def reply(weights):
    content = RecordDict(
        {
            "arrays": ArrayRecord({"layer": Array(weights)}),
            "metrics": MetricRecord({"num-examples": 10}),
        }
    )
    return Message(content=content, dst_node_id=1, message_type=MessageType.TRAIN)


def our_weights(optimizer, changes=CHANGES, *, base=BASE, first=1):
    seen = []
    for number, change in enumerate(changes, start=first):
        base = optimizer.step(round_number=number, base=base, change=change.copy())
        seen.append(base)
    return seen


def test_fedavg_takes_the_mean_as_it_is():
    optimizer = ServerOptimizer(ServerOptimizerSpec(name="fedavg"))
    weights = optimizer.step(round_number=1, base=BASE, change=CHANGES[0].copy())
    assert (weights == BASE + CHANGES[0]).all()
    assert optimizer.state() == {}


@pytest.mark.parametrize("name", FLOWERS_OWN)
def test_the_optimiser_is_flowers_own_fed_with_the_replies_behind_the_mean(name):
    ours = our_weights(ServerOptimizer(ServerOptimizerSpec(name=name)))
    assert ours[-1].dtype == np.float32
    np.testing.assert_allclose(ours, flowers_weights(name), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_resumed_optimiser_goes_on_to_the_same_bits(name, tmp_path):
    spec = ServerOptimizerSpec(name=name)
    uninterrupted = our_weights(ServerOptimizer(spec))
    first = ServerOptimizer(spec)
    base = our_weights(first, CHANGES[:2])[-1]
    path = tmp_path / "moments.safetensors"
    path.write_bytes(save_moments(first.state()))
    resumed = our_weights(
        ServerOptimizer(spec, load_moments(path)), CHANGES[2:], base=base, first=3
    )
    assert (resumed[-1] == uninterrupted[-1]).all()


@pytest.mark.parametrize("name", FLOWERS_OWN)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_change_that_is_not_finite_is_refused_and_pollutes_no_moment(name, poison):
    optimizer = ServerOptimizer(ServerOptimizerSpec(name=name))
    base = optimizer.step(round_number=1, base=BASE, change=CHANGES[0].copy())
    before = optimizer.state()
    bad = CHANGES[1].copy()
    bad[7] = poison
    with pytest.raises(AggregationError, match=r"Round 2: .* not finite"):
        optimizer.step(round_number=2, base=base, change=bad)
    after = optimizer.state()
    assert all((after[name] == before[name]).all() for name in before)


@pytest.mark.parametrize("name", FLOWERS_OWN)
def test_blocks_change_no_bit(name, monkeypatch):
    whole = our_weights(ServerOptimizer(ServerOptimizerSpec(name=name)))
    monkeypatch.setattr(server_optimizer, "BLOCK", 7)
    assert (our_weights(ServerOptimizer(ServerOptimizerSpec(name=name)))[-1] == whole[-1]).all()


def test_an_optimiser_works_outside_of_a_flower_task(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    assert len(our_weights(ServerOptimizer(ServerOptimizerSpec()))) == len(CHANGES)


@pytest.mark.parametrize("name", FLOWERS_OWN)
def test_a_step_beyond_float32_is_refused(name):
    optimizer = ServerOptimizer(ServerOptimizerSpec(name=name, learning_rate=1e30))
    huge = np.full(50, 3e38, np.float32)
    with pytest.raises(AggregationError, match="is aborted"):
        optimizer.step(round_number=1, base=huge, change=huge)


def test_a_change_of_another_length_is_refused():
    optimizer = ServerOptimizer(ServerOptimizerSpec())
    with pytest.raises(AggregationError, match="does not fit"):
        optimizer.step(round_number=1, base=BASE, change=CHANGES[0].copy()[:-1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not safetensors",
        save({"first_moment": BASE}),
        save({"first_moment": BASE, "second_moment": BASE, "third": BASE}),
    ],
)
def test_a_file_that_holds_no_moments_is_refused(tmp_path, content):
    path = tmp_path / "moments.safetensors"
    path.write_bytes(content)
    with pytest.raises(AggregationError, match="backup"):
        load_moments(path)


@pytest.mark.parametrize("name", FLOWERS_OWN)
def test_blocks_change_nothing(name, monkeypatch):
    whole = our_weights(ServerOptimizer(ServerOptimizerSpec(name=name)))
    monkeypatch.setattr("coordinator.strategies.server_optimizer.BLOCK", 7)
    in_blocks = our_weights(ServerOptimizer(ServerOptimizerSpec(name=name)))
    assert (whole[-1] == in_blocks[-1]).all()
