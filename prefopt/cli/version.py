"""``prefopt version``, a command without a verb."""

from __future__ import annotations

import platform
from importlib import metadata

import typer


def command() -> None:
    """Print versions, for a bug report."""
    typer.echo(f"prefopt {metadata.version('prefopt')}")
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for name in ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "triton"):
        found = next(iter(metadata.distributions(name=name)), None)
        typer.echo(f"{name} {found.version if found else 'is not installed'}")
