"""The command `xmodal`."""

from __future__ import annotations

import sys

# What the commands need beyond the core, by module name.
EXTRAS = {"typer", "rich", "lightning", "matplotlib", "sklearn", "scipy", "h5py"}


def main() -> None:
    """Entry point. Without the extras of training it says how to get them."""
    try:
        from .commands import app

        app()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        print(f"xmodal needs {error.name}: pip install 'xmodal-ops[train]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(130)


if __name__ == "__main__":
    main()
