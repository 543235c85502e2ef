"""Vector quantisation: optimal codebooks, the peer library's numbers, ranks, restarts and state."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import VectorQuantize

from pyfastgan.nn import VectorQuantizer


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def train(quantizer, draw, steps):
    for _ in range(steps):
        quantizer(draw())
    return quantizer.eval()


def test_the_best_codebook_of_uniform_numbers():
    """K codes reach a mean squared error of 1 / (12 K^2), also from a start with one code in use."""
    quantizer = VectorQuantizer(8, 1, decay=0.9, restart_below=5)
    train(quantizer, lambda: torch.rand(4096, 1), 300)
    x = (torch.arange(100_000)[:, None] + 0.5) / 100_000
    error = (quantizer(x).quantized - x).square().mean()
    assert abs(error * 12 * 64 - 1) < 0.02
    assert quantizer(x).usage == 1
    assert abs(quantizer(x).perplexity - 8) < 0.05


def test_two_codes_of_normal_numbers():
    """Their centres are at +-sqrt(2 / pi), the error is 1 - 2 / pi = 0.3634."""
    quantizer = VectorQuantizer(2, 1, decay=0.9)
    quantizer.codebook.copy_(torch.tensor([[-0.1], [0.2]]))
    quantizer.sums.copy_(quantizer.codebook)
    x = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20_001)[1:, None] - 0.5) / 20_000)
    train(quantizer, lambda: x, 120)
    torch.testing.assert_close(
        quantizer.codebook,
        torch.tensor([[-1.0], [1.0]]) * math.sqrt(2 / math.pi),
        atol=5e-4,
        rtol=0,
    )
    assert abs((quantizer(x).quantized - x).square().mean() - 0.3634) < 5e-4


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
def test_the_peer_library_s_numbers(gradient):
    peer = VectorQuantize(
        6, 20, decay=0.99, commitment_weight=0.25, rotation_trick=gradient == "rotation"
    )
    ours = VectorQuantizer(20, 6, gradient=gradient)
    start = torch.randn(20, 6)
    peer._codebook.embed.data.copy_(start[None])
    peer._codebook.embed_avg.data.copy_(start[None])
    ours.codebook.copy_(start)
    ours.sums.copy_(start)
    for _ in range(3):
        x = torch.randn(4, 30, 6)
        weight = torch.randn(4, 30, 6)
        results = []
        for module, y in ((peer, x.clone().requires_grad_()), (ours, x.clone().requires_grad_())):
            if module is peer:
                quantized, index, loss = module(y)
            else:
                quantized, index, loss, *_ = module(y.movedim(-1, 1))
                quantized = quantized.movedim(1, -1)
            ((quantized * weight).sum() + loss.sum()).backward()
            results.append((quantized.detach(), index, loss.detach().reshape(()), y.grad))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.codebook, peer._codebook.embed[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.counts, peer._codebook.cluster_size[0])


def test_the_codebook_by_its_loss():
    """||sg(x) - e||^2 + beta ||x - sg(e)||^2, as the paper writes it, in means over elements."""
    quantizer = VectorQuantizer(5, 3, codebook="loss", commitment=0.25)
    x = torch.randn(7, 3, 2, 2, requires_grad=True)
    result = quantizer(x)
    rows = x.movedim(1, -1).reshape(-1, 3)
    code = quantizer.codebook[result.indices.flatten()]
    expected = (rows.detach() - code).square().mean() + 0.25 * (
        rows - code.detach()
    ).square().mean()
    torch.testing.assert_close(result.loss, expected)
    inputs = (x, quantizer.codebook)
    for a, b in zip(
        torch.autograd.grad(result.loss, inputs), torch.autograd.grad(expected, inputs)
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(result.quantized, quantizer.lookup(result.indices))
    assert quantizer.counts.sum() != 5


def test_the_state_is_whole():
    """Saved and loaded, a quantizer goes on as if it had not stopped, restarts included."""
    batches = [torch.randn(50, 4) for _ in range(6)]
    whole = VectorQuantizer(64, 4, decay=0.5, restart_below=0.9)
    for x in batches[:3]:
        whole(x)
    resumed = VectorQuantizer(64, 4, decay=0.5, restart_below=0.9)
    resumed.load_state_dict(whole.state_dict())
    before = whole.codebook.clone()
    for x in batches[3:]:
        a, b = whole(x), resumed(x)
        assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert all(
        torch.equal(p, q)
        for p, q in zip(whole.state_dict().values(), resumed.state_dict().values())
    )
    # A restarted code is a vector of a batch, drawn before that batch is averaged in.
    assert (before != whole.codebook).any()
    assert whole(torch.randn(50, 4)).usage > 0.3


def test_frozen_in_evaluation():
    quantizer = VectorQuantizer(4, 2, restart_below=9).eval()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer(torch.randn(10, 2))
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


def test_the_codebook_does_not_depend_on_threads():
    x, states = torch.randn(3000, 8), []
    start = torch.randn(40, 8)
    for threads in (1, 2, 3):
        quantizer = VectorQuantizer(40, 8)
        quantizer.codebook.copy_(start)
        quantizer.sums.copy_(start)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            quantizer(x)
        finally:
            torch.set_num_threads(before)
        states.append(quantizer.codebook)
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_nothing_has_a_number_for_each_vector_and_code(codebook):
    quantizer = VectorQuantizer(300, 4, codebook=codebook, restart_below=0.5)
    x = torch.randn(500, 4, requires_grad=True)
    with Largest() as largest:
        quantizer(x).loss.backward()
    assert largest.elements <= 500 * 5


def test_half_types():
    quantizer = VectorQuantizer(16, 4)
    result = quantizer(torch.randn(3, 4, 5, 5, dtype=torch.bfloat16))
    assert result.quantized.dtype == torch.bfloat16
    assert result.loss.dtype == torch.float32


def test_a_whole_graph_and_no_vectors():
    """`fullgraph` gives the eager numbers; an empty batch costs nothing and breaks nothing."""
    eager = VectorQuantizer(20, 8, restart_below=0.5)
    other = VectorQuantizer(20, 8, restart_below=0.5)
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        x = torch.randn(50, 8, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        for model, vectors in ((eager, x), (compiled, y)):
            result = model(vectors)
            (result.loss + result.quantized.square().sum()).backward()
        torch.testing.assert_close(y.grad, x.grad)
        torch.testing.assert_close(other.codebook, eager.codebook)
    before = eager.codebook.detach().clone()
    x = torch.zeros(0, 8, 3, requires_grad=True)
    result = eager(x)
    result.loss.backward()
    assert result.loss == 0
    assert result.indices.shape == (0, 3)
    torch.testing.assert_close(eager.codebook.detach(), before)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="codes must be at least 2, got 1"):
        VectorQuantizer(1, 4)
    with pytest.raises(ValueError, match="width must be at least 1"):
        VectorQuantizer(4, 0)
    with pytest.raises(ValueError, match="did you mean 'rotation'"):
        VectorQuantizer(4, 4, gradient="rotations")
    with pytest.raises(ValueError, match="decay must lie in"):
        VectorQuantizer(4, 4, decay=1.0)
    with pytest.raises(ValueError, match="commitment must be at least 0"):
        VectorQuantizer(4, 4, commitment=-1)
    quantizer = VectorQuantizer(4, 4)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 4, ...\)"):
        quantizer(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"floating-point dtype, got torch.int64"):
        quantizer(torch.zeros(2, 4, dtype=torch.int64))
    before = quantizer.codebook.clone()
    with pytest.raises(ValueError, match="NaN, got it in 1 of 2 vectors"):
        quantizer(torch.tensor([[1.0, 2, 3, 4], [1, math.nan, 3, 4]]))
    assert torch.equal(quantizer.codebook, before)
    with pytest.raises(ValueError, match=r"index must lie in \[0, 4\), got 0 to 4"):
        quantizer.lookup(torch.tensor([0, 4]))


RANK = """
import os, sys, torch, torch.distributed as dist
from pyfastgan.nn import VectorQuantizer
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(rank)
quantizer = VectorQuantizer(32, 4, restart_below=1.0, decay=0.9)
generator = torch.Generator().manual_seed(7)
for _ in range(5):
    whole = torch.randn(80, 4, generator=generator)
    result = quantizer(whole[40 * rank : 40 * rank + 40])
torch.save((quantizer.state_dict(), result.usage, result.perplexity, whole), sys.argv[2] + f".{rank}")
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""


def test_two_ranks_keep_one_codebook(tmp_path):
    """From different starts, with codes restarted from the vectors of both."""
    path = str(tmp_path / "store")
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), path],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    assert [job.wait(timeout=120) for job in jobs] == [0, 0]
    (a, *shared, whole), (b, *other, _) = (torch.load(f"{path}.{rank}") for rank in (0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert shared == other
    assert a["steps"] == 5
    assert shared[0] > 0.2
