"""Every supported release of ultralytics and torch, each in an environment of its own: `python -m tests.compat`."""
