"""Errors that a user can cause or meet."""


class PipelineError(Exception):
    """An error that the user can fix. The message says what, which value, which bound, and what to do."""


class ParamsError(PipelineError):
    """A value in params.yaml, or the file itself, is not usable."""


class MergeConflictError(ParamsError):
    """A file has the marks of a merge that git left to a person."""


class FetchError(PipelineError):
    """The corpus can't be fetched, or is not the expected one."""


class UnreachableError(FetchError):
    """The host could not be reached: name resolution, connection, timeout or proxy."""


class DataError(PipelineError):
    """A text or token file is not usable."""


class ModelError(PipelineError):
    """The files of a model directory are damaged, of another model, or do not fit together."""


class ScheduleError(PipelineError):
    """An argument of the learning-rate schedule is out of bounds."""


class DeviceError(PipelineError):
    """The requested device or arithmetic is not available on this machine."""


class OutOfMemoryError(PipelineError):
    """A tensor does not fit into the device's memory."""


class NonFiniteError(PipelineError):
    """A loss or gradient is NaN or infinite."""


class TrackingError(PipelineError):
    """The MLflow store can't be used."""


class OrphanedError(PipelineError):
    """The DVC process that started a stage is gone."""


class Terminated(BaseException):
    """SIGTERM, or SIGHUP for a lost terminal, was received. Like KeyboardInterrupt, it is not an Exception."""
