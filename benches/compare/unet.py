"""The U-Net of ADM in PyTorch, as far as the workloads need it.

Residual blocks have adaptive group norm and resample inside (`use_scale_shift_norm`,
`resblock_updown`), as in all of ADM's networks. Options and parameter names are those of
guided-diffusion's `UNetModel`, so that a `state_dict` of it or of `demist export` loads.
What is written for speed and not for likeness: attention is PyTorch's fused one, and the
SiLU of the embedding, with which every block begins, is taken once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Options of a network; `attention_resolutions` are downsampling factors."""

    image_size: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[float, ...]
    in_channels: int = 3
    out_channels: int = 6
    num_classes: int | None = None
    num_heads: int = 1
    num_head_channels: int | None = None
    use_new_attention_order: bool = False

    @property
    def levels(self) -> int:
        return len(self.channel_mult)

    @property
    def embedding(self) -> int:
        """Width of the timestep embedding."""
        return 4 * self.model_channels

    def channels(self, level: int) -> int:
        return int(self.channel_mult[level] * self.model_channels)

    def attends(self, level: int) -> bool:
        return 2**level in self.attention_resolutions


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def conv3(cin: int, cout: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Cosines, then sines of `t` [n] at `dim // 2` frequencies from 1 down to 1/10000."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def attention(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """Attends over the tokens of `qkv` [n, tokens, 3c]; the result is [n, tokens, c].

    The 3c channels are [head][q|k|v][c / heads], in the new order [q|k|v][head][c / heads].
    """
    n, tokens, width = qkv.shape
    if new_order:
        q, k, v = qkv.view(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    else:
        q, k, v = qkv.view(n, tokens, heads, 3, -1).permute(3, 0, 2, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v)
    return h.transpose(1, 2).reshape(n, tokens, width // 3)


class Projection(nn.Module):
    """A linear layer over tokens whose weight has the shape of a Conv1d's."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        like = nn.Conv1d(cin, cout, 1)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(2), self.bias)


class AttentionBlock(nn.Module):
    """Self-attention of all pixels, added to the input."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = Projection(channels, 3 * channels)
        self.proj_out = Projection(channels, channels)
        self.new_order = config.use_new_attention_order
        per_head = config.num_head_channels
        self.heads = channels // per_head if per_head else config.num_heads

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        h = self.proj_out(attention(self.qkv(tokens), self.heads, self.new_order))
        return x + h.transpose(1, 2).reshape(x.shape)


class ResBlock(nn.Module):
    """A residual block; `resample` is applied to both paths."""

    def __init__(
        self, cin: int, cout: int, embedding: int, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(norm(cin), nn.SiLU(), conv3(cin, cout))
        # The SiLU of index 0 is the U-Net's, the dropout of index 2 is off.
        self.emb_layers = nn.Sequential(nn.Identity(), nn.Linear(embedding, 2 * cout))
        self.out_layers = nn.Sequential(norm(cout), nn.SiLU(), nn.Identity(), conv3(cout, cout))
        self.skip_connection = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)
        self.resample = resample or nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        first_norm, silu, first_conv = self.in_layers
        h = first_conv(self.resample(silu(first_norm(x))))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        second_norm, *rest = self.out_layers
        h = second_norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resample(x)) + h


class Block(nn.ModuleList):
    """Layers of which residual blocks are also given the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def encoder(c: Config) -> tuple[nn.ModuleList, list[int]]:
    """The input blocks and the channels that each puts out."""
    channels = c.channels(0)
    blocks, widths = [Block([conv3(c.in_channels, channels)])], [channels]
    for level in range(c.levels):
        for _ in range(c.num_res_blocks):
            layers: list[nn.Module] = [ResBlock(channels, c.channels(level), c.embedding)]
            channels = c.channels(level)
            if c.attends(level):
                layers.append(AttentionBlock(channels, c))
            blocks.append(Block(layers))
            widths.append(channels)
        if level + 1 < c.levels:
            blocks.append(Block([ResBlock(channels, channels, c.embedding, nn.AvgPool2d(2))]))
            widths.append(channels)
    return nn.ModuleList(blocks), widths


def decoder(c: Config, skips: list[int]) -> nn.ModuleList:
    """The output blocks, which also read what the encoder put out, last first."""
    channels, blocks = skips[-1], []
    for level in reversed(range(c.levels)):
        for i in range(c.num_res_blocks + 1):
            width = c.channels(level)
            layers: list[nn.Module] = [ResBlock(channels + skips.pop(), width, c.embedding)]
            channels = width
            if c.attends(level):
                layers.append(AttentionBlock(channels, c))
            if level > 0 and i == c.num_res_blocks:
                larger = nn.Upsample(scale_factor=2, mode="nearest")
                layers.append(ResBlock(channels, channels, c.embedding, larger))
            blocks.append(Block(layers))
    return nn.ModuleList(blocks)


class UNet(nn.Module):
    """Predicts from noisy images `x` [n, c, h, w], timesteps `t` [n] and labels `y` [n]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.embedding
        self.config = config
        self.time_embed = nn.Sequential(
            nn.Linear(config.model_channels, width), nn.SiLU(), nn.Linear(width, width)
        )
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, width)
        self.input_blocks, widths = encoder(config)
        channels = widths[-1]
        self.middle_block = Block(
            [
                ResBlock(channels, channels, width),
                AttentionBlock(channels, config),
                ResBlock(channels, channels, width),
            ]
        )
        self.output_blocks = decoder(config, widths)
        first = config.channels(0)
        self.out = nn.Sequential(norm(first), nn.SiLU(), conv3(first, config.out_channels))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = timestep_embedding(t, self.config.model_channels)
        emb = self.time_embed(emb.to(x.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        emb = F.silu(emb)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())
