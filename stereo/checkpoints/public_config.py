"""`cfg.yaml` beside a released weight file: settings that no tensor shows.

Released files are only a state dict; the folder that they come in holds the settings of their
training. Keys of other programs are left out. What tensors show counts more than what is written.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

log = logging.getLogger(__name__)

NAME = "cfg.yaml"
MAX_BYTES = 2**16


def beside(checkpoint: Path) -> dict[str, Any]:
    """Names and values of the configuration beside a weight file; empty when there is none."""
    path = checkpoint.with_name(NAME)
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        events = yaml.parse(content, yaml.SafeLoader)
        if any(isinstance(event, yaml.AliasEvent) for event in events):
            raise ValueError("it repeats parts of itself, which can take any amount of memory")
        found = yaml.safe_load(content)
        if not isinstance(found, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        log.warning("%s is not read: %s", path, str(error).partition("\n")[0])
        return {}
    return {name: value for name, value in found.items() if isinstance(name, str)}
