"""cuda_graph=True, with a capture that calls the captured function again in place of a graph."""

import pytest
import torch

import pyfastgan as pf
from pyfastgan import ops
from pyfastgan.gan.config import GANConfig
from pyfastgan.gan.trainer import GAN
from pyfastgan.ops.random import seeds_shifted_by
from pyfastgan.training import TrainConfig, captured
from pyfastgan.training.graphs import GraphedSteps
from pyfastgan.vae.config import VAEConfig
from pyfastgan.vae.system import VAESystem


class Fabric:
    device = torch.device("cpu")
    global_rank = 0


class System:
    """Notes its calls, and loses noise and data."""

    period = 2

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.optimizers = {"a": torch.optim.Adam([self.weight])}
        self.calls = []

    def training_step(self, fabric, batch, step):
        noise = ops.random_normal((2, 3), 5, stream=step)
        self.calls.append((step, batch[0].data_ptr(), noise))
        return {"loss": noise.sum() + batch[0].sum()}


def graphed(system):
    """Runs in place: what is captured is called again, and only then."""
    counts = {"captures": 0}

    def capture(function):
        counts["captures"] += 1
        return function

    return GraphedSteps(system, Fabric(), capture=capture, warm=lambda f: f()), counts


def test_a_graph_for_each_kind_of_step():
    system = System()
    steps, counts = graphed(system)
    batches = [torch.full((4,), float(k)) for k in range(12)]
    losses = [steps((batch,), k + 1)["loss"] for k, batch in enumerate(batches)]
    assert counts["captures"] == 2
    assert {step for step, *_ in system.calls} == {2, 3}
    # Three steps of each kind warm up on the batch itself; the others read the captured one's memory.
    places = [place for _, place, _ in system.calls]
    assert places[:6] == [b.data_ptr() for b in batches[:6]]
    assert len(set(places[6::2])) == len(set(places[7::2])) == 1
    for k, (loss, (_, _, noise)) in enumerate(zip(losses, system.calls)):
        torch.testing.assert_close(loss, noise.sum() + 4.0 * k)
    assert system.optimizers["a"].param_groups[0]["capturable"]


def test_the_noise_is_that_of_the_step():
    """Another in every step, the same for a run that begins later, and no matter what is captured."""
    whole, resumed = System(), System()
    steps, _ = graphed(whole)
    for step in range(1, 11):
        steps((torch.zeros(1),), step)
    steps, _ = graphed(resumed)
    for step in range(5, 11):
        steps((torch.zeros(1),), step)
    noises = [noise for *_, noise in whole.calls]
    assert all(torch.equal(a, b) for a, (*_, b) in zip(noises[4:], resumed.calls, strict=True))
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 10


def test_a_shape_of_its_own_is_warmed_up_for_itself():
    steps, counts = graphed(System())
    for step in range(2, 22, 2):
        steps((torch.zeros(3 if step == 20 else 4),), step)
    assert counts["captures"] == 1


def test_shifted_seeds():
    shift = torch.tensor(7)
    with seeds_shifted_by(shift):
        found = ops.random_words((3, 5), 2**63 - 3)
        each = ops.random_words((3, 5), torch.arange(3))
        shift.fill_(8)
        later = ops.random_words((3, 5), 2**63 - 3)
    assert torch.equal(found, ops.random_words((3, 5), 2**63 + 4))
    assert torch.equal(later, ops.random_words((3, 5), 2**63 + 5))
    assert torch.equal(each, ops.random_words((3, 5), torch.arange(3) + 7))
    assert torch.equal(ops.random_words((3, 5), 1), ops.random_words((3, 5), torch.tensor(1)))


def test_a_cpu_is_refused(tmp_path):
    config = {"steps": 1, "accelerator": "cpu", "cuda_graph": True}
    with pytest.raises(
        ValueError, match="cuda_graph=True needs a CUDA device, and this run is on cpu"
    ):
        pf.gan.train("dcgan", out=tmp_path / "run", **config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{"devices": 2}, {"precision": "16-mixed"}])
def test_what_a_graph_cannot_hold_is_refused(given):
    with pytest.raises(ValueError, match="cuda_graph=True is for one device and not for precision"):
        TrainConfig(cuda_graph=True, **given)


def test_a_system_whose_steps_differ_is_refused():
    from pyfastgan.training.graphs import check_capturable

    system = System()
    system.period = 0
    with pytest.raises(ValueError, match="cuda_graph=True cannot be had for it with this"):
        check_capturable(system, torch.device("cuda"), "it")


def test_the_periods_of_the_families():
    """A generator's turn and a penalty that is due are other work; a growing capacity is never the same."""
    for changes, period in (
        ({"penalty": "r1", "penalty_interval": 4, "discriminator_steps": 6}, 12),
        ({"penalty": "none", "discriminator_steps": 3}, 3),
    ):
        gan = object.__new__(GAN)
        gan.config = GANConfig(**changes)
        assert gan.period == period
    for capacity, period in ((None, 1), (2.0, 0)):
        vae = object.__new__(VAESystem)
        vae.config = VAEConfig(capacity=capacity)
        assert vae.period == period


def test_captured_functions_take_cuda_tensors():
    with pytest.raises(ValueError, match="takes CUDA tensors, got one on cpu"):
        captured(torch.sin)(torch.zeros(2))
    with pytest.raises(TypeError, match="takes tensors, got float"):
        captured(torch.sin)(2.0)
