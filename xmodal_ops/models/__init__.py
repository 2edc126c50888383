"""Complete models: linear CCA, and DCCA with its branches."""

from .branches import MLP, AlexNet, SmallCNN, TextBranch
from .dcca import DCCA
from .linear_cca import LinearCCA

__all__ = ["DCCA", "MLP", "AlexNet", "LinearCCA", "SmallCNN", "TextBranch"]
