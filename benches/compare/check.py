"""Checks that the U-Net of `unet.py` is the reference's, and so demist's.

It computes the golden vectors of `tests/golden`, with which demist's own tests check its
networks: results of guided-diffusion for weights that a hash of their names gives. Networks
of demist can be given as well: their names and shapes must be ours.

    python benches/compare/check.py assets/faces16.safetensors
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet import Config, UNet, parameters

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
LIMIT = 1e-5
# The element types in which networks and golden vectors are stored.
TYPES = {"F32": torch.float32, "I64": torch.int64}
WORD = 2**32


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file: the length of a JSON header, the header, the data."""
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:begin])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        first, last = (begin + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(data[first:last], dtype=TYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors, metadata


def noise(name: str, shape: torch.Size) -> Tensor:
    """Values in [-1, 1) that depend on the name and the place alone (FNV-1a, then PCG)."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = (seed ^ byte) * 0x01000193 % WORD
    place = torch.arange(math.prod(shape), dtype=torch.int64)
    a = times(seed + place * 0x9E3779B9 % WORD, 747796405) + 2891336453
    a = a % WORD
    w = times((a >> ((a >> 28) + 4)) ^ a, 277803737)
    return ((((w >> 22) ^ w) >> 8).float() / 2**23 - 1).reshape(shape)


def times(a: Tensor, factor: int) -> Tensor:
    """A product modulo 2^32; in halves, since the whole one overflows."""
    a = a % WORD
    return ((a >> 16) * factor % WORD * 2**16 + (a & 0xFFFF) * factor) % WORD


def weight(salt: str, name: str, shape: torch.Size) -> Tensor:
    """What the golden vectors were computed with."""
    u = noise(salt + name, shape)
    if name == "label_emb.weight":
        return u
    if len(shape) >= 2:
        return u * torch.tensor(math.sqrt(1.5 / math.prod(shape[1:])))
    return 1 + 0.25 * u if name.endswith(".weight") else 0.1 * u


def config_of(options: dict[str, Any]) -> Config | None:
    """The network of these options, if it is one that `unet.py` knows."""
    ours = options.get("use_scale_shift_norm") and options.get("resblock_updown")
    # A classifier, or a super-resolution network.
    others = options.get("pool") or options.get("small_size")
    if not ours or others:
        return None
    known = {f.name for f in fields(Config)}
    kept = {key: value for key, value in options.items() if key in known}
    for key in ("attention_resolutions", "channel_mult"):
        kept[key] = tuple(kept[key])
    return Config(**kept)


@torch.no_grad()
def golden_error(path: Path) -> float | None:
    """The largest difference from a golden vector by its largest element."""
    tensors, metadata = read_safetensors(path)
    case = json.loads(metadata["config"])
    config = config_of(case["model"])
    if config is None:
        return None
    network, salt = UNet(config), case["salt"]
    for name, parameter in network.named_parameters():
        parameter.copy_(weight(salt, name, parameter.shape))
    t, wanted = tensors["in.t"], tensors["out.y"]
    side = config.image_size
    x = 1.7 * noise(salt + "in.x", torch.Size([len(t), config.in_channels, side, side]))
    result = network(x, t, tensors.get("in.y"))
    return ((result - wanted).abs().max() / wanted.abs().max()).item()


def load_network(path: Path) -> UNet:
    """A network of demist, loaded by name."""
    tensors, metadata = read_safetensors(path)
    options = json.loads(metadata["demist"])["model"]
    if options.get("null_class"):
        options["num_classes"] += 1
    config = config_of(options)
    if config is None:
        sys.exit(f"{path}: a network that unet.py does not have")
    network = UNet(config)
    network.load_state_dict(tensors)
    return network


def main() -> None:
    failed = False
    for path in sorted(GOLDEN.glob("unet_*.safetensors")):
        error = golden_error(path)
        if error is None:
            print(f"{path.name}: options that unet.py does not have")
            continue
        failed |= not error < LIMIT
        print(f"{path.name}: differs by {error:.1e} of the largest element")
    for name in sys.argv[1:]:
        network = load_network(Path(name))
        tensors = len(network.state_dict())
        print(f"{name}: all {tensors} tensors loaded, {parameters(network)} parameters")
    if failed:
        sys.exit(f"above {LIMIT}: another network")


if __name__ == "__main__":
    main()
