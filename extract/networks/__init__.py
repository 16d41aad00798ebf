"""Plain network modules and their weights; imports nothing of ours and serves extraction and heads alike.

from extract.networks import build
"""

from extract.networks.libraries import Library, check_name, names, own_channels, reads_clips
from extract.networks.registry import Network, build, save_network
from extract.networks.rows import FromRows, Reads, channels
from extract.networks.spec import InputSpec
from extract.networks.weights import NetworkError, fill, load_state, save_state, state_sha256

__all__ = [
    "FromRows",
    "InputSpec",
    "Library",
    "Network",
    "NetworkError",
    "Reads",
    "build",
    "channels",
    "check_name",
    "fill",
    "load_state",
    "names",
    "own_channels",
    "reads_clips",
    "save_network",
    "save_state",
    "state_sha256",
]
