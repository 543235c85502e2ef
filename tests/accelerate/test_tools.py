"""torch.compile, torch.export, DDP, and the package without the libraries."""

import copy
import subprocess
import sys
import warnings

import FrEIA.framework
import FrEIA.modules
import nflows.transforms
import normflows
import pytest
import torch
import torch.distributed as dist
import zuko
from nflows.nn.nets import ResidualNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vector_quantize_pytorch import VectorQuantize

import pyfastgan as pf


def linear(i, o):
    return nn.Sequential(nn.Linear(i, 8), nn.ReLU(), nn.Linear(8, o))


class Density(nn.Module):
    """The negative log-likelihood in `forward`, as tools want it."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "nflows":
            make = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform
            net = lambda i, o: ResidualNet(i, o, hidden_features=8, num_blocks=1)  # noqa: E731
            self.flow = make(torch.tensor([1, -1, 1, -1]), net, num_bins=4, tails="linear")
        elif kind == "zuko":
            self.flow = zuko.flows.NSF(4, transforms=1, hidden_features=(8,), bins=4)
        elif kind == "normflows":
            self.flow = normflows.flows.CoupledRationalQuadraticSpline(4, 1, 8, num_bins=4)
        elif kind == "FrEIA":
            self.flow = FrEIA.framework.SequenceINN(4)
            self.flow.append(FrEIA.modules.AllInOneBlock, subnet_constructor=linear)
        else:
            self.flow = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        if self.kind == "torch":
            return self.flow(x.reshape(-1, 1, 4, 4)).mean()
        z, logdet = self.flow.transform().call_and_ladj(x) if self.kind == "zuko" else self.flow(x)
        return (0.5 * z.square().sum(1) - logdet).mean()


KINDS = ("nflows", "normflows", "zuko", "FrEIA", "torch")


def model_and_data(kind):
    torch.manual_seed(0)
    model = Density(kind)
    assert pf.accelerate(model).replaced
    return model, torch.randn(16, 4)


def gradients(model, x):
    model.zero_grad()
    loss = model(x)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind):
    model, x = model_and_data(kind)
    expected = gradients(copy.deepcopy(model), x)
    # zuko's own transformations are objects that are made in a call, which the compiler does not follow.
    compiled = torch.compile(model, backend="aot_eager", fullgraph=kind != "zuko")
    for a, b in zip(gradients(compiled, x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind):
    model, x = model_and_data(kind)
    model.eval()
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_trace(kind):
    # torch.jit.trace gives shapes as tensors.
    model, x = model_and_data(kind)
    model.eval()
    traced = torch.jit.trace(model, (x,), check_trace=False)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("kind", ["zuko", "FrEIA", "torch"])
def test_shapes_without_values(kind):
    # nflows and normflows themselves ask for values.
    model, x = model_and_data(kind)
    with warnings.catch_warnings(action="error"):
        assert model.to("meta")(x.to("meta")).shape == ()


def test_compiling_a_codebook():
    torch.manual_seed(0)
    model = VectorQuantize(dim=4, codebook_size=8).eval()
    pf.accelerate(model)
    x = torch.randn(3, 5, 4)
    compiled = torch.compile(model, backend="aot_eager")
    for a, b in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_ddp(kind, one_rank):
    model, x = model_and_data(kind)
    expected = gradients(copy.deepcopy(model), x)
    for a, b in zip(gradients(DistributedDataParallel(model), x), expected, strict=True):
        torch.testing.assert_close(a, b)
    # Wrapped before: names and keys carry the wrapper's prefix.
    wrapped = DistributedDataParallel(Density(kind))
    keys = wrapped.state_dict().keys()
    (replaced, *_) = pf.accelerate(wrapped).replaced
    assert replaced.name.startswith("module.flow")
    assert wrapped.state_dict().keys() == keys


def test_nothing_is_imported_for_it():
    """The package imports none of the libraries, nor does accelerating what is not theirs."""
    code = """
import sys, torch, pyfastgan as pf
pf.accelerate(torch.nn.Linear(2, 2))
names = ("nflows", "normflows", "zuko", "FrEIA", "vector_quantize_pytorch", "diffusers")
assert not set(names) & set(sys.modules), set(names) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_version_that_is_not_known(monkeypatch):
    """A library that lacks what is served is left alone, and named."""
    model, _ = model_and_data("nflows")
    model = Density("nflows")
    monkeypatch.delitem(sys.modules, "pyfastgan.acceleration.nflows")
    monkeypatch.delattr(nflows.transforms, "OneByOneConvolution")
    report = pf.accelerate(model)
    assert report.replaced == []
    assert any("this version of nflows is not known" in s.reason for s in report.skipped)


def test_the_report():
    model = Density("nflows")
    report = pf.accelerate(model)
    assert report.replaced[0].name == "flow"
    text = str(report)
    assert "replaced 1, skipped 0" in text
    assert "PiecewiseRationalQuadraticCouplingTransform: rational_quadratic_spline" in text
    assert "nothing in it" not in text
    assert "nothing in it is of a kind that an op serves" in str(pf.accelerate(nn.Linear(2, 2)))
    report.revert()
    report.revert()
    assert type(model.flow) is nflows.transforms.PiecewiseRationalQuadraticCouplingTransform
