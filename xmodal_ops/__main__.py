"""`python -m xmodal_ops`: versions, devices, compiled architectures, and the path that each op takes."""

from ._build import describe

if __name__ == "__main__":
    print(describe())
