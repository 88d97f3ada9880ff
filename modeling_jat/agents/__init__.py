"""Agents that come with the package, each in a folder as `save_pretrained` writes it."""

from pathlib import Path

_AGENTS = {path.parent.name: path.parent for path in Path(__file__).parent.glob("*/config.json")}


def pretrained(name: str) -> Path:
    """The folder of an agent that comes with the package, for work without a network.

    Args:
        name: "jat-mini", which plays every domain; its card is the `README.md` of the folder.

    Returns:
        The folder, as `from_pretrained` takes it.

    Raises:
        ValueError: if the package has no such agent.
    """
    if name not in _AGENTS:
        raise ValueError(f"no agent {name!r} comes with the package: expected one of {', '.join(sorted(_AGENTS))}")
    return _AGENTS[name]
