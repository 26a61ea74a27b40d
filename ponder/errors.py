"""Every way in which Ponder says no: one clear sentence, and an exit code of its own.

An error's message names the setting to change. The command line prints that sentence and exits with
`exit_code`; anything that is not a `PonderError` is a defect of Ponder and keeps its traceback.
"""


class PonderError(Exception):
    """Base of all errors that a person can act on. Exit code 1."""

    exit_code = 1


class UsageError(PonderError):
    """The command, the recipe or an argument is wrong. Exit code 2."""

    exit_code = 2


class RefusedError(PonderError):
    """A preflight check, the watchdog or a gate refuses to go on. Exit code 3."""

    exit_code = 3


class BrokenInputError(PonderError):
    """A file that Ponder was given cannot be read: weights, tokenizer, data set, run folder. Exit code 4."""

    exit_code = 4


class DamagedCheckpointError(BrokenInputError):
    """A file of a checkpoint is not what was written: torn, changed or gone. Exit code 4.

    A stage goes back to the checkpoint before, where that is whole.
    """


class InterruptedRunError(PonderError):
    """The run was stopped, and the same command goes on where it was. Exit code 5."""

    exit_code = 5


class LostWorkersError(InterruptedRunError):
    """Processes of a cluster died or fell silent, and what they held is gone; a checkpoint has the rest. Exit code 5.

    A stage goes back to its checkpoint and on from there, until it has done so `cluster.max_restarts` times.
    """
