"""The errors that scripts report. The messages are for the person at the terminal; `cli.run` shows them alone.

Each folder of the package offers its own error by the same name. They are here so that nobody imports it for its error.
"""


class IdmmError(Exception):
    """Something that was given can't be used. The message says what is wrong, where, and what to do."""


class ConfigError(IdmmError):
    """A configuration that can't be used. The message names the key, the value and what is wanted."""


class Locked(ConfigError):
    """Another process holds a lock. The message says which one, where, and what to do."""


class DatasetError(IdmmError):
    """The raw files of a dataset are missing or not what they should be. The message says which, and what to do."""


class WriteError(IdmmError):
    """A conversion that can't go on. The message says why and what to do; nothing is left under the final name."""


class BetonError(IdmmError):
    """A file that is no intact `.beton`. The message says what is wrong and what to do."""


class LoaderError(IdmmError, RuntimeError):
    """A batch that could not be made. The message names the file and the row."""


class Stopped(Exception):
    """Work ended early, in good order, after a signal; `exit_code` is what the process exits with."""

    exit_code = 130
