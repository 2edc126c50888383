"""Complete models: linear CCA, DCCA with its branches, ACMR with its projectors."""

from .acmr import ACMR, ACMRLosses
from .branches import MLP, AlexNet, SmallCNN, TextBranch
from .dcca import DCCA
from .linear_cca import LinearCCA
from .projector import Projector

__all__ = ["ACMR", "DCCA", "MLP", "ACMRLosses", "AlexNet", "LinearCCA", "Projector", "SmallCNN", "TextBranch"]
