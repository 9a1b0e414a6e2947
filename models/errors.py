"""The errors of learning and evaluation."""

from headrace.streams.errors import CannotGoOn, HeadraceError


class ModelsError(HeadraceError):
    """What is learnt cannot go on as asked."""


class ArtifactError(ModelsError):
    """A stored model cannot be written or must not be read."""


class LearnerError(CannotGoOn, ModelsError):
    """A learner failed on an outcome. The message names the outcome and the learner."""
