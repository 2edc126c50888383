"""The command `xmodal`."""

from __future__ import annotations

import sys

# Modules that the commands need and the package alone does not.
EXTRAS = {"typer", "rich", "lightning", "filelock", "matplotlib", "sklearn", "scipy", "h5py"}


def main() -> None:
    """Entry point. If the extras of training are not installed, it says how to install them."""
    try:
        from .commands import app

        app()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        print(f"xmodal needs {error.name}: pip install 'xmodal-ops[train]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before a command begins: typer and rich are still loading
        print("xmodal: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
