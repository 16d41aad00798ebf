"""Plain network modules and their weights; imports nothing of ours and serves extraction and heads alike.

from extract.networks import build
"""

from extract.networks.registry import InputSpec, Library, Network, build, names, save_network
from extract.networks.weights import NetworkError, fill, load_state, save_state, state_sha256

__all__ = [
    "InputSpec",
    "Library",
    "Network",
    "NetworkError",
    "build",
    "fill",
    "load_state",
    "names",
    "save_network",
    "save_state",
    "state_sha256",
]
