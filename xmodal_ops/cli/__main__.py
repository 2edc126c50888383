"""`python -m xmodal_ops.cli`: the command `xmodal`."""

from . import main

if __name__ == "__main__":
    main()
