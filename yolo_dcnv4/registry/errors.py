"""What registration raises."""

from __future__ import annotations


class RegistrationError(RuntimeError):
    """A module cannot be registered with the installed ultralytics; nothing has been changed."""
