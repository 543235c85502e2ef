"""A linear autoencoder against scikit-learn's principal components."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA

from pyfastgan.vae import linear_autoencoder


def test_a_linear_autoencoder_spans_the_principal_components() -> None:
    torch.manual_seed(0)
    spread = torch.tensor([4.0, 3.0, 2.0, 0.7, 0.5, 0.3, 0.2, 0.1]).double()
    turn = torch.linalg.qr(torch.randn(8, 8).double()).Q
    x = (torch.randn(300, 8).double() * spread) @ turn + torch.randn(8).double()
    model = linear_autoencoder(8, 3).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = model(x)[1].mean()
        value.backward()
        return value

    optimizer.step(loss)
    pca = PCA(3).fit(x.numpy())
    components = torch.from_numpy(pca.components_)
    basis = torch.linalg.qr(model.decoder.weight.detach()).Q
    torch.testing.assert_close(basis @ basis.T, components.T @ components, atol=1e-4, rtol=0)
    made, error = model(x)
    best = torch.from_numpy(pca.inverse_transform(pca.transform(x.numpy())))
    torch.testing.assert_close(made, best, atol=1e-3, rtol=0)
    torch.testing.assert_close(error.mean(), (best - x).square().sum(1).mean(), rtol=1e-6, atol=0)


def test_wrong_arguments() -> None:
    for latent in (0, 9):
        with pytest.raises(ValueError, match=r"latent_dim must lie in \[1, features=8\]"):
            linear_autoencoder(8, latent)
