"""The ops in plain torch, one per file: the maths, readable, and the path of every device without kernels."""
