"""Norms and activations in forwards of somebody's own, which torch.fx looks at and which stay as they are."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from same import check
from torch import nn

import pyfastgan as pf
from pyfastgan.acceleration.pending import Pending


class Block(nn.Module):
    """One activation for two norms, a branch, and a function in place of a module."""

    def __init__(self, i, o, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1)
        self.norm2 = nn.GroupNorm(2, o)
        self.relu = nn.ReLU(inplace=True)
        self.down = None if i == o else nn.Conv2d(i, o, 1, stride)
        self.steps = 0
        self.seen = []

    def forward(self, x):
        self.steps += 1
        self.seen.append(x)
        del self.seen[:]
        y = self.relu(self.bn1(self.conv1(x)))
        y = F.silu(self.norm2(self.conv2(y)))
        if self.down is not None:
            x = self.down(x)
        return self.relu(x + y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.act = nn.LeakyReLU(0.2)
        self.blocks = nn.ModuleList([Block(8, 8), Block(8, 16, 2)])
        self.instance = nn.InstanceNorm2d(16, affine=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        y = self.act(self.stem(x))
        for block in self.blocks:
            y = block(y)
        if self.training:
            y = y * 1.5
        y = self.instance(y).tanh()
        return self.head(y.mean((2, 3)))


SERVED = ["stem", "instance", "blocks.0.bn1", "blocks.0.norm2", "blocks.1.bn1", "blocks.1.norm2"]


def images(seed=0, n=4):
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _kernels():
    """Tensors as small as these would go to torch."""
    torch.manual_seed(0)
    with pf.use_backend("cpu"):
        yield


def pairs(make=Net):
    model = make()
    fast = copy.deepcopy(model)
    return model, fast, pf.accelerate(fast)


def test_before_and_after():
    x, kinds = images(), {"Conv2d", "BatchNorm2d", "GroupNorm", "InstanceNorm2d"}
    report = check(Net(), lambda m: m(x).square().mean(), kinds)
    assert [r.name for r in report.replaced] == SERVED
    assert {r.op for r in report.replaced} == {"norm_act", "edge_conv, conv_transpose_act"}


def test_looking_at_a_forward_leaves_no_trace():
    model = Net()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    pf.accelerate(model)
    assert model.blocks[0].steps == 0
    assert model.blocks[0].seen == []
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_parts_alone():
    """A part that is called or copied by itself gives what it gave."""
    model, fast, _ = pairs()
    x = torch.randn(4, 8, 12, 12)
    for m in (fast.blocks[0].bn1, copy.deepcopy(fast.blocks[0].bn1)):
        y = m(x)
        assert type(y) is torch.Tensor
        torch.testing.assert_close(y, copy.deepcopy(model.blocks[0].bn1)(x))
    torch.testing.assert_close(fast.stem(images()), model.stem(images()))


class Turns(nn.Module):
    """A forward that does between a norm and its activation what nothing had told before."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=False)
        self.turn = "usual"

    def forward(self, x):
        y = self.norm(x)
        if self.turn == "between":
            y = 2 * y
        if self.turn == "twice":
            return self.act(y) + y
        if self.turn == "in place":
            z = torch.relu_(y)
            return z + y
        if self.turn == "changed":
            y.mul_(2)
        if self.turn == "shape":
            return self.act(y.reshape(y.shape[0], -1)).sum(1)
        if self.turn == "returned":
            return {"y": [y]}["y"][0]
        if self.turn == "unused":
            return x.exp()
        if self.turn == "kept":
            self.kept = y
        if self.turn == "watched":
            with torch.no_grad():
                self.mean = y.mean().item()
        if self.turn == "function":
            return Twice.apply(y)
        return self.act(y)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


TURNS = ["usual", "between", "twice", "in place", "changed", "shape", "returned", "unused"]
TURNS += ["kept", "watched", "function"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("turn", TURNS)
def test_turns_that_were_not_seen(turn, training):
    model, fast, report = pairs(Turns)
    assert [r.name for r in report.replaced] == ["norm"]
    found = []
    for m in (model, fast):
        m.train(training)
        m.turn = turn
        x = images().requires_grad_()
        y = m(x)
        assert type(y) is torch.Tensor
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        grads = [p.grad for p in m.parameters()]
        found.append([y.detach(), x.grad, *m.buffers(), *(g for g in grads if g is not None)])
        if turn == "kept":
            found[-1].append(m.kept.detach() + 0)
        if turn == "watched":
            found[-1].append(torch.tensor(m.mean))
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_usual_turn_is_fused():
    """Else every test here could pass without anything being served."""
    from pyfastgan.acceleration import torch_modules

    _, fast, _ = pairs(Turns)
    seen = []

    def spy(*args, **kwargs):
        seen.append(kwargs["act"])
        return original(*args, **kwargs)

    original, torch_modules.norm_act = torch_modules.norm_act, spy
    try:
        fast(images())
        fast.turn = "between"
        fast(images())
    finally:
        torch_modules.norm_act = original
    assert seen == ["relu", "linear"]


def test_an_input_that_changes_in_between():
    class Odd(Turns):
        def forward(self, x):
            x = x + 0
            y = self.norm(x)
            if self.turn != "usual":
                x.zero_()
            return self.act(y)

    fast = Odd()
    assert pf.accelerate(fast).replaced
    fast.turn = "odd"
    with pytest.raises(RuntimeError, match=r"changed in place.*report\.revert"), torch.no_grad():
        fast(images())


def test_hooks():
    model, fast, _ = pairs(Turns)
    for where in ("norm", "act"):
        results = []
        for m in (model, fast):
            seen = []
            part = m.get_submodule(where)
            part.register_forward_hook(lambda m, i, y, s=seen: s.extend([i[0] + 0, y + 0]))
            part.register_full_backward_hook(lambda m, i, o, s=seen: s.extend([i[0], o[0]]))
            x = images().requires_grad_()
            m(x).square().sum().backward()
            results.append([*seen, x.grad])
        assert len(results[0]) == len(results[1]) == 5
        for ours, theirs in zip(*results[::-1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_left_alone():
    class Branch(Turns):
        def forward(self, x):
            y = self.norm(x)
            return self.act(y) if x.mean() > 0 else y

    (skipped,) = pf.accelerate(Branch()).skipped
    assert skipped.name == ""
    assert "torch.fx cannot follow its forward" in skipped.reason
    model = Turns()
    model.norm.register_forward_hook(lambda *_: None)
    report = pf.accelerate(nn.ModuleDict({"a": model}))
    assert [(s.name, s.reason) for s in report.skipped] == [("a.norm", "it has hooks")]
    assert report.replaced == []
    assert type(model) is Turns

    class Apart(Turns):
        def forward(self, x):
            y = self.norm(x)
            return self.act(y) + y

    report = pf.accelerate(Apart())
    assert not report.replaced
    assert not report.skipped


def test_half_precision_and_autocast():
    model, fast, _ = pairs()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(images()), model(images()), rtol=0, atol=2e-2)
    model.bfloat16(), fast.bfloat16()
    x = images().bfloat16()
    assert torch.equal(fast.eval()(x), model.eval()(x))


def test_functional_calls_compile_and_functorch():
    model, fast, _ = pairs()
    x = images()
    values = {k: v + 0.1 for k, v in model.named_parameters()}
    ours, theirs = (torch.func.functional_call(m, values, (x,)) for m in (fast, model))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    model.eval(), fast.eval()
    with torch.no_grad():
        compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
        singly = torch.func.vmap(lambda one: fast(one[None])[0], randomness="error")
        torch.testing.assert_close(singly(x), model(x), rtol=1e-4, atol=1e-4)
        exported = torch.export.export(fast, (x,)).module()
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_second_derivative():
    model, fast, _ = pairs()
    found = []
    for m in (model, fast):
        x = images().requires_grad_()
        (g,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), m.blocks[0].conv1.weight))
    torch.testing.assert_close(*found[::-1], rtol=1e-3, atol=1e-4)


def test_a_part_in_two_forwards():
    norm = nn.BatchNorm2d(3)
    first, second = Turns(), Turns()
    first.norm = second.norm = norm
    model = nn.Sequential(first, second)
    fast = copy.deepcopy(model)
    report = pf.accelerate(fast)
    assert [r.name for r in report.replaced] == ["0.norm"]
    torch.testing.assert_close(fast(images()), model(images()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast[0].norm.running_var, norm.running_var)
    report.revert()
    assert [type(m) for m in fast.modules()] == [type(m) for m in model.modules()]


def test_pickles_are_accelerated():
    _, fast, _ = pairs()
    again = pickle.loads(pickle.dumps(fast))
    assert [type(m) for m in again.modules()] == [type(m) for m in fast.modules()]
    torch.testing.assert_close(again(images()), fast(images()))
    assert not isinstance(again(images()), Pending)
