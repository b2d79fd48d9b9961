"""The one exception a user may see: a single line that names the file or flag and the remedy."""


class UserError(Exception):
    """Wrong input. Scripts print it as one line on stderr and leave with exit code 2, never with a traceback."""


class TrainingFailure(RuntimeError):
    """A run that cannot go on (for instance nothing but non-finite losses): one line, exit code 1."""
