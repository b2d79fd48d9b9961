"""The exceptions a user may see: a single line that names the file or argument and the remedy."""


class UserError(ValueError):
    """Wrong input. Scripts print it as one line on stderr and leave with exit code 2, never with a traceback.

    A message names arguments as Python does (``data_path=``); a command line shows them as flags (``--data-path``).
    """


class OptionError(UserError):
    """A value, or a combination of values, that an option does not take."""


class TrainingFailure(RuntimeError):
    """A run that cannot go on (for instance nothing but non-finite losses): one line, exit code 1."""


def reason_of(error: BaseException) -> str:
    """The last line that a foreign library's message says something in, cut to one of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error))[:120]
