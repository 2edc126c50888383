"""Errors that end a command with one line and an exit code. Imports nothing, so that the command line starts fast."""


class UserError(ValueError):
    """Something that the user can fix: an option, a file, a directory, a device. The message is one line."""


class Interrupted(Exception):
    """The user stopped a training. The message says what has been saved and how to continue."""


class RunWarning(UserWarning):
    """Something that a run does without, such as a damaged checkpoint or a picture. The message is one line."""


def one_line(error: BaseException) -> str:
    """The message of an exception on one line; its type if it has none, or if the message is only a missing key."""
    message = " ".join(str(error).split())
    return message if message and not isinstance(error, KeyError) else f"{type(error).__name__} {message}".strip()
