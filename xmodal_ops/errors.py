"""Errors that end a command with one line and an exit code. Imports nothing, so that the command line starts fast."""


class UserError(ValueError):
    """Something that the user can fix: an option, a file, a directory, a device. The message is one line."""


class Interrupted(Exception):
    """The user stopped a training. The message says what has been saved and how to continue."""
