"""What an export can fail with, beside the readers' errors."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot be done; the message is one line that says why and what to do."""


class VerificationError(Exception):
    """The exported graph is not what it should be; nothing was written."""
