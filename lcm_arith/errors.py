"""The error tree. Each cause has its class, its exit code, and the built-in it refines.

::

    LcmArithError                     1
    ├── UsageError (ValueError)       2   impossible option, empty prompt, rank out of range
    ├── NotFoundError (LookupError)   3   unknown vector, missing file
    ├── OutputExistsError             3   output exists and --force was not given
    ├── ConflictError                 3   somebody else changed the same thing in between
    ├── InvalidContentError           4   no adapter, NaN, cut file, no usable picture
    ├── StorageError (OSError)        5   no space, no permission
    ├── IncompatibleError             6   adapter of another architecture
    ├── NetworkError (ConnectionError) 7  no server, no access, cut transfer, offline
    ├── VerificationError             8   a written file does not read back as it was
    ├── DivergedError                 8   training reached non-finite numbers
    └── InterruptedTraining           130 it was told to stop, and saved what it had

A message says where (file, target module), what (both values), and what to do; the last part goes
into ``hint``.
"""


class LcmArithError(Exception):
    """Base of all errors that this package raises on purpose.

    Args:
        message: Where and what, in one sentence.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nHint: {self.hint}" if self.hint else self.message


class UsageError(LcmArithError, ValueError):
    """A value that cannot work: impossible list, empty prompt, rank out of range."""

    exit_code = 2


class NotFoundError(LcmArithError, LookupError):
    """No vector of that name and no file at that path."""

    exit_code = 3


class OutputExistsError(LcmArithError, FileExistsError):
    """The output exists and overwriting it was not asked for."""

    exit_code = 3


class ConflictError(LcmArithError, RuntimeError):
    """Somebody else changed the same thing since it was read; nothing was overwritten."""

    exit_code = 3


class InvalidContentError(LcmArithError, ValueError):
    """The content is unusable: no adapter, NaN, a cut file, no readable picture."""

    exit_code = 4


class StorageError(LcmArithError, OSError):
    """The disk refused: no space, no permission."""

    exit_code = 5


class IncompatibleError(LcmArithError, ValueError):
    """The adapter belongs to another architecture than the base model."""

    exit_code = 6


class NetworkError(LcmArithError, ConnectionError):
    """A server does not answer, refuses access, or cut a transfer; or the network is off."""

    exit_code = 7


class VerificationError(LcmArithError, RuntimeError):
    """A file that was written does not read back as what was meant."""

    exit_code = 8


class DivergedError(LcmArithError, ArithmeticError):
    """Training reached non-finite numbers and cannot go on."""

    exit_code = 8


class InterruptedTraining(LcmArithError):  # it is what the user asked for
    """Training was told to stop, and kept what it had."""

    exit_code = 130
