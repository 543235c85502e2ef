"""The networks: shapes, what they are told, and what they refuse."""

import pytest
import torch

from pyfastgan.diffusion import MLP, UNet


def unet(**options):
    torch.manual_seed(0)
    options = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": 4, **options}
    network = UNet(options.pop("channels", 1), options.pop("size", 8), **options)
    for parameter in network.parameters():  # the last layers of branches start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("size", [8, 28])
def test_a_unet_keeps_shape_and_sees_all_inputs(size):
    """28 is halved twice; every input and every parameter has a gradient."""
    levels = (1, 2) if size == 8 else (1, 2, 2)
    options = {"multipliers": levels, "classes": 3, "self_conditioning": True, "out": 6}
    network = unet(channels=3, size=size, **options)
    x, x0 = torch.randn(2, 2, 3, size, size, requires_grad=True).unbind(0)
    x.retain_grad(), x0.retain_grad()
    time = torch.tensor([3.0, 500.0], requires_grad=True)
    y = network(x, time, torch.tensor([0, 3]), x0=x0)
    assert y.shape == (2, 6, size, size)
    y.square().sum().backward()
    for tensor in (x, x0, time, *network.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


def test_samples_do_not_see_each_other():
    for network, shape in ((unet(channels=3, size=8), (4, 3, 8, 8)), (MLP(5, width=8), (4, 5))):
        x, time = torch.randn(shape), torch.arange(4.0) * 100
        torch.testing.assert_close(
            network(x, time)[1:2], network(x[1:2], time[1:2]), rtol=1e-4, atol=1e-5
        )


def test_a_fresh_unet_predicts_zero():
    assert not UNet(1, 8, width=8, multipliers=(1, 2))(torch.randn(2, 1, 8, 8), torch.ones(2)).any()


def test_a_missing_estimate_is_zero():
    for network, x in (
        (unet(self_conditioning=True), torch.randn(2, 1, 8, 8)),
        (MLP(2, width=8, self_conditioning=True), torch.randn(2, 2)),
    ):
        time = torch.ones(2)
        assert torch.equal(network(x, time), network(x, time, x0=torch.zeros_like(x)))
        assert not torch.equal(network(x, time), network(x, time, x0=torch.ones_like(x)))


def test_neighbouring_levels_differ_in_a_half_type():
    network = MLP(2, width=16).bfloat16()
    x = torch.zeros(2, 2, dtype=torch.bfloat16)
    with torch.no_grad():
        embedding = network.embedding(torch.tensor([998.0, 999.0]), None)
    assert (embedding[0] - embedding[1]).abs().max() > 0
    assert network(x, torch.tensor([1.0, 2.0])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: UNet(1, 8, width=10), "width must be a positive multiple of 4, got 10"),
        (lambda: UNet(1, 10, width=8), "size must be a multiple of 4 for 3 levels, got 10"),
        (lambda: UNet(1, 8, width=8, blocks=0), "blocks and multipliers must be at least 1"),
        (lambda: MLP(0), "dim must be at least 1, got 0"),
        (lambda: MLP(2, layers=0), "layers must be at least 1, got 0"),
        (
            lambda: unet()(torch.zeros(1, 1, 7, 8), torch.ones(1)),
            r"x must be of shape \(N, 1, 8, 8\)",
        ),
        (lambda: MLP(2)(torch.zeros(1, 2), torch.ones(1), torch.zeros(1)), "labels must be given"),
        (lambda: MLP(2, classes=3)(torch.zeros(1, 2), torch.ones(1)), "labels must be given"),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_networks_name_their_mistakes():
    for call, says in (
        (lambda: UNet(0, 8), "channels must be at least 1, got 0"),
        (
            lambda: UNet(1, 8)(torch.zeros(1, 1, 8, 8), torch.zeros(2)),
            r"time must be of shape \(1,\)",
        ),
        (lambda: MLP(2)(torch.zeros(3, 4), torch.zeros(3)), r"x must be of shape \(N, 2\), got"),
        (lambda: MLP(2)(torch.zeros(3, 2), torch.zeros(2)), r"time must be of shape \(3,\) like x"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
