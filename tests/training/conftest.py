import pytest
import torch

from xmodal_ops.data import PairData, PairSet


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_pairs(m: int, seed: int, features: bool = False) -> PairSet:
    """Images (m, 1, 16, 16) or features (m, 20), and texts (m, 12), of four common latent variables; two classes."""
    g, mix = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    z = torch.randn(m, 4, generator=g)
    image = torch.sigmoid(z @ torch.randn(4, 256, generator=mix) + 0.5 * torch.randn(m, 256, generator=g))
    text = z @ torch.randn(4, 12, generator=mix) + 0.5 * torch.randn(m, 12, generator=g)
    image = image[:, :20] if features else image.reshape(m, 1, 16, 16)
    return PairSet(image, text, (z[:, 0] > 0).long(), [f"THING {i}" for i in range(m)])


@pytest.fixture(scope="session")
def tiny() -> PairData:
    return PairData(tiny_pairs(300, 0), tiny_pairs(60, 1), tiny_pairs(80, 2), name="tiny", classes=["low", "high"])


@pytest.fixture(scope="session")
def tiny_features() -> PairData:
    splits = (tiny_pairs(m, seed, features=True) for m, seed in ((300, 0), (60, 1), (80, 2)))
    return PairData(*splits, name="tiny features", classes=["low", "high"])
