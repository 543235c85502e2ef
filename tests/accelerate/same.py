"""What acceleration must not change."""

import copy
import pickle

import torch

import pyfastgan as pf


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def outputs_and_gradients(model, loss):
    model.zero_grad()
    value = loss(model)
    value.backward()
    return value.detach(), {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


def close(ours, theirs, rtol=2e-4):
    """In float32, against the largest of all numbers: a gradient that vanishes is the rounding of what cancels."""
    assert ours.keys() == theirs.keys()
    floats = [
        t.double().abs().max()
        for t in theirs.values()
        if t is not None and t.is_floating_point() and t.numel()
    ]
    size = float(max(floats))
    for name, a in ours.items():
        b = theirs[name]
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(
                a, b, rtol=rtol, atol=rtol * size, msg=lambda text, name=name: f"{name}: {text}"
            )


def train(model, loss, lr, steps=20):
    """Losses of some steps, by an optimizer that is made here."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for k in range(steps):
        torch.manual_seed(k)
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return torch.tensor(losses)


def check(model, loss, kinds, rtol=2e-4, pickles=True, lr=1e-3):
    """Values, gradients, 20 steps, state and objects, before and after; `kinds` are the classes to be replaced."""
    twin = copy.deepcopy(model)
    before, classes = state_of(twin), [type(m) for m in twin.modules()]
    objects = [id(t) for t in (*twin.parameters(), *twin.buffers())]
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)

    report = pf.accelerate(twin)
    assert {r.kind for r in report.replaced} == set(kinds), str(report)
    assert all(r.op for r in report.replaced)
    assert [id(t) for t in (*twin.parameters(), *twin.buffers())] == objects
    after = twin.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [t.__name__ for t in classes] == [type(m).__name__ for m in twin.modules()]
    # A second call changes nothing.
    fast = [type(m) for m in twin.modules()]
    again = pf.accelerate(twin)
    assert again.replaced == []
    assert [type(m) for m in twin.modules()] == fast

    (value, gradients), (expected, theirs) = (outputs_and_gradients(m, loss) for m in (twin, model))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    close(gradients, theirs, rtol)
    # An optimizer from before moves the model that is accelerated now.
    moved = state_of(twin)
    optimizer.step()
    assert any(not torch.equal(twin.state_dict()[key], moved[key]) for key in moved)
    twin.load_state_dict(before)
    model.load_state_dict(before)

    others = [copy.deepcopy(twin)]
    if pickles:
        others.append(pickle.loads(pickle.dumps(twin)))
    for other in others:
        assert [type(m) for m in other.modules()] == fast
        torch.testing.assert_close(loss(other), loss(twin))
        twin.load_state_dict(before)

    torch.testing.assert_close(train(twin, loss, lr), train(model, loss, lr), rtol=1e-3, atol=1e-3)
    close(dict(twin.state_dict()), dict(model.state_dict()), 1e-2)

    twin.eval()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loss(twin), loss(model), rtol=2e-3, atol=2e-3)
    report.revert()
    assert [type(m) for m in twin.modules()] == classes
    assert [id(p) for p in twin.parameters()] == objects[: len(list(twin.parameters()))]
    assert not [name for m in twin.modules() for name in vars(m) if name.startswith("_fast_")]
    return report
