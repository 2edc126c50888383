"""What all trainings have in common."""

from dataclasses import replace

import pytest
import torch

from xmodal_ops.training import ACMRConfig, DCCAConfig, train_acmr, train_dcca


@pytest.mark.parametrize(
    ("train", "config"),
    [
        (train_dcca, DCCAConfig(epochs=1, batch_size=100, output_dim=4, hidden=(16,))),
        (train_acmr, ACMRConfig(epochs=1, batch_size=50, dim=8, image_hidden=(16,), text_hidden=(12,))),
    ],
)
def test_gradients_are_clipped(tiny_features, tmp_path, monkeypatch, train, config):
    norms, original = [], torch.optim.AdamW.step

    def step(self, closure=None):
        result = original(self, closure)
        norms.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).norm().item())
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(tiny_features, config, tmp_path, device="cpu", pictures=False)
    largest = max(norms)
    norms.clear()
    train(tiny_features, replace(config, gradient_clip=largest / 10), tmp_path, device="cpu", pictures=False)
    assert 0.99 * largest / 10 < max(norms) <= 1.001 * largest / 10
