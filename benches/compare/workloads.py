"""The workloads of `demist bench` in PyTorch; `src/bench/cases.rs` has the originals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet import Config, UNet, attention, conv3, norm, parameters

# Floating-point operations as demist counts them, from the shapes of the layers and a
# multiply-add as two; a test of demist compares them with its own.
FLOPS: dict[str, int] = json.loads(Path(__file__).with_name("flops.json").read_text())

DIRECTIONS = {
    "forward": "forward",
    "backward": "forward and backward",
    "step": "training step",
}

Run = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """How PyTorch runs the workloads."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool
    channels_last: bool

    def place(self, x: Tensor) -> Tensor:
        """On the device, images in the asked order of channels."""
        if self.channels_last and x.dim() == 4:
            return x.to(self.device, memory_format=torch.channels_last)
        return x.to(self.device)

    def module(self, module: nn.Module) -> nn.Module:
        """On the device, and compiled if asked."""
        module = module.to(self.device)
        if self.channels_last:
            module = module.to(memory_format=torch.channels_last)
        if self.compiled:
            module.compile(dynamic=False)
        return module


@dataclass(frozen=True)
class Case:
    """A direction of a workload: `prepare` makes what is to be timed."""

    workload: str
    op: str
    direction: str
    # As demist has it: pixels by rows, channels last.
    shape: tuple[int, ...]
    prepare: Callable[[Settings], Run]

    @property
    def name(self) -> str:
        return f"{self.workload} {self.op} {DIRECTIONS[self.direction]}"


@dataclass(frozen=True)
class Workload:
    id: str
    cases: tuple[Case, ...]
    heavy: bool = False


class HeadAttention(nn.Module):
    """Attention of four heads, without projections."""

    def forward(self, qkv: Tensor) -> Tensor:
        return attention(qkv, heads=4, new_order=False)


def op_forward(module: nn.Module, x: Tensor, settings: Settings) -> Run:
    """The result of one op."""
    module = settings.module(module.to(settings.dtype))
    x = settings.place(x.to(settings.dtype))

    @torch.inference_mode()
    def run() -> Tensor:
        return module(x)

    return run


def op_backward(module: nn.Module, x: Tensor, settings: Settings) -> Run:
    """The result, and the gradients of input and parameters from a gradient of it."""
    module = settings.module(module.to(settings.dtype))
    x = settings.place(x.to(settings.dtype)).requires_grad_()
    wanted = [x, *module.parameters()]
    dy = torch.rand_like(module(x)) * 2 - 1

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x), wanted, dy)

    return run


def inputs(config: Config, batch: int, settings: Settings) -> tuple[Tensor, ...]:
    """Images, timesteps, and labels if the network has classes."""
    side = config.image_size
    x = settings.place(torch.rand(batch, config.in_channels, side, side) * 2 - 1)
    places = torch.arange(batch)
    given = [x, settings.place((places * 61 % 1000).float())]
    if config.num_classes is not None:
        given.append(settings.place(places % config.num_classes))
    return tuple(given)


def network_forward(config: Config, batch: int, settings: Settings) -> Run:
    """A prediction. In bfloat16 all of the network is."""
    network = settings.module(UNet(config).eval().to(settings.dtype))
    x, *rest = inputs(config, batch, settings)
    x = x.to(settings.dtype)

    @torch.inference_mode()
    def run() -> Tensor:
        return network(x, *rest)

    return run


def network_step(config: Config, batch: int, settings: Settings) -> Run:
    """A training step: mean squared error of the first channels, gradients, AdamW.

    In bfloat16 the weights stay float32 and autocast decides. The learning rate is zero:
    the same arithmetic, but weights that stay where they are.
    """
    network = settings.module(UNet(config))
    given = inputs(config, batch, settings)
    target = settings.place(torch.rand(given[0].shape) * 2 - 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    mixed = settings.dtype != torch.float32

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(settings.device.type, settings.dtype, enabled=mixed):
            predicted = network(*given)[:, : config.in_channels]
        F.mse_loss(predicted.float(), target).backward()
        optimizer.step()

    return run


def op(
    id: str, name: str, shape: tuple[int, int, int, int], make: Callable[[int], nn.Module]
) -> Workload:
    """An op on an image [n, h, w, c], forward, and forward and backward."""
    n, h, w, c = shape
    # Attention reads tokens, whose channels lie next to each other.
    given = (n, h * w, c) if name == "attention" else (n, c, h, w)

    def case(direction: str, run: Callable[[nn.Module, Tensor, Settings], Run]) -> Case:
        def prepare(settings: Settings) -> Run:
            return run(make(c), torch.rand(given) * 2 - 1, settings)

        return Case(id, name, direction, shape, prepare)

    return Workload(id, (case("forward", op_forward), case("backward", op_backward)))


def network(
    id: str, direction: str, config: Config, batch: int, count: int, heavy: bool = False
) -> Workload:
    """A network of `count` parameters on a batch."""
    run = network_step if direction == "step" else network_forward

    def prepare(settings: Settings) -> Run:
        with torch.device("meta"):
            found = parameters(UNet(config))
        if found != count:
            raise AssertionError(f"{id} has {found} parameters, not {count}")
        return run(config, batch, settings)

    shape = (batch, config.image_size, config.image_size, config.in_channels)
    return Workload(id, (Case(id, "unet", direction, shape, prepare),), heavy)


UNET16 = Config(
    image_size=16,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 2, 2),
    num_classes=5,
    num_heads=2,
)
UNET32 = Config(
    image_size=32,
    model_channels=64,
    num_res_blocks=2,
    attention_resolutions=(2, 4),
    channel_mult=(1, 2, 2),
    num_head_channels=32,
)
# 64x64_diffusion of guided-diffusion.
ADM64 = Config(
    image_size=64,
    model_channels=192,
    num_res_blocks=3,
    attention_resolutions=(2, 4, 8),
    channel_mult=(1, 2, 3, 4),
    num_classes=1000,
    num_head_channels=64,
    use_new_attention_order=True,
)

WORKLOADS = (
    op("W1", "conv2d", (4, 32, 32, 64), lambda c: conv3(c, c)),
    op("W2", "conv2d", (4, 16, 16, 128), lambda c: conv3(c, c)),
    op("W3", "group_norm", (4, 32, 32, 128), lambda c: nn.Sequential(norm(c), nn.SiLU())),
    op("W4", "attention", (4, 16, 16, 3 * 128), lambda _: HeadAttention()),
    network("W5", "forward", UNET16, 16, 1_372_614),
    network("W6", "step", UNET16, 16, 1_372_614),
    network("W7", "forward", UNET32, 4, 7_994_182),
    network("W8", "forward", ADM64, 1, 295_904_454, heavy=True),
    network("W9", "step", ADM64, 8, 295_904_454, heavy=True),
)
