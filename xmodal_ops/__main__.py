"""`python -m xmodal_ops`: versions, devices, compiled architectures, and the implementation of each op."""

from ._build import describe

if __name__ == "__main__":
    print(describe())
