"""Tokens-to-Token ViT (Yuan et al., arXiv 2101.11986), which timm does not have, registered with timm.

Soft splits (7 x 7 stride 4, 3 x 3 stride 2 twice) with a small attention layer between them make the tokens; a plain
ViT with fixed sinusoid position embedding follows. The layer between is softmax attention (t2t_vit_t_*), or a
performer, attention whose softmax kernel is approximated by random features (t2t_vit_*; Choromanski et al., arXiv
2009.14794).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp, trunc_normal_
from timm.models import register_model
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["T2TViT"]


class TokenTransformer(nn.Module):
    """Attention of one head that also narrows the tokens: (B, T, dim) -> (B, T, inner)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(inner)
        self.qkv, self.proj = nn.Linear(dim, 3 * inner, bias=False), nn.Linear(inner, inner)
        self.mlp = Mlp(inner, inner)
        self.scale = dim**-0.5  # of the wide token, as released

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unsqueeze(1).chunk(3, -1)
        # The shortcut goes around the attention alone, and from v: x has another width.
        x = v.squeeze(1) + self.proj(scaled_dot_product_attention(q, k, v, scale=self.scale).squeeze(1))
        return x + self.mlp(self.norm2(x))


class TokenPerformer(nn.Module):
    """The same with cost linear in T: exp(q . k) is estimated by positive random features.

    Args:
        dim: width of a token.
        inner: its width afterwards.
        features: number of random features, as a fraction of `inner`.
        drop: the rate of dropout.
    """

    w: torch.Tensor

    def __init__(self, dim: int, inner: int, features: float = 0.5, drop: float = 0.1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(inner)
        self.kqv, self.proj = nn.Linear(dim, 3 * inner), nn.Linear(inner, inner)
        self.drop, self.mlp = nn.Dropout(drop), Mlp(inner, inner, drop=(0.0, drop))
        count = int(inner * features)
        self.register_buffer("w", nn.init.orthogonal_(torch.empty(count, inner)) * math.sqrt(count))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """exp(w . x - |x|^2 / 2) / sqrt(m): (B, T, inner) -> (B, T, m), in float32."""
        x = x.float()
        return torch.exp(x @ self.w.float().T - (x * x).sum(-1, keepdim=True) / 2) / math.sqrt(self.w.shape[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, -1)
        with torch.autocast(x.device.type, enabled=False):
            k, q = self.features(k), self.features(q)
            total = (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True)
            y = q @ (k.transpose(1, 2) @ v.float()) / (total + 1e-8)
        x = v + self.drop(self.proj(y.to(v.dtype)))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """Images (B, 3, S, S) to tokens (B, (S / 16)^2, dim)."""

    def __init__(self, in_chans: int, dim: int, module: type[nn.Module], token_dim: int = 64) -> None:
        super().__init__()
        self.splits: Any = nn.ModuleList(
            [nn.Unfold(7, stride=4, padding=2), *(nn.Unfold(3, stride=2, padding=1) for _ in range(2))]
        )
        self.attention = nn.ModuleList([module(in_chans * 49, token_dim), module(token_dim * 9, token_dim)])
        self.project = nn.Linear(token_dim * 9, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for split, attention in zip(self.splits, self.attention):
            side = (x.shape[-1] + 2 * split.padding - split.kernel_size) // split.stride + 1
            x = attention(split(x).transpose(1, 2))
            x = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)
        return self.project(self.splits[-1](x).transpose(1, 2))


def sinusoids(count: int, dim: int) -> torch.Tensor:
    """The fixed position embedding (1, count, dim) of Vaswani et al.: sines at even places, cosines at odd ones."""
    angle = torch.arange(count)[:, None] / 10000 ** (2 * (torch.arange(dim) // 2) / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())[None].float()


@dataclass(frozen=True)
class T2TConfig:
    """What differs between the T2T-ViTs.

    Attributes:
        tokens: the layer between the soft splits, "performer" or "transformer".
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: of the attention in a block.
        mlp_ratio: width of a block's MLP, in widths of a token.
    """

    tokens: str = "performer"
    embed_dim: int = 256
    depth: int = 7
    num_heads: int = 4
    mlp_ratio: float = 2.0


class T2TViT(nn.Module):
    """A T2T-ViT with timm's interface: num_features, forward_features, forward_head.

    Args:
        img_size: side of the image in pixels, a multiple of 16.
        in_chans: channels of the image.
        num_classes: 0 for features.
        drop_path_rate: of the last block; it rises from 0 in the first.
        config: the fields of T2TConfig.

    Raises:
        ValueError: an img_size that is no multiple of 16.
    """

    pos_embed: torch.Tensor

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        **config: Any,
    ) -> None:
        super().__init__()
        if img_size % 16:
            raise ValueError(f"T2T-ViT takes images whose side is a multiple of 16, not {img_size}")
        made = T2TConfig(**config)
        dim = made.embed_dim
        self.num_classes, self.num_features, self.embed_dim = num_classes, dim, dim
        module = {"performer": TokenPerformer, "transformer": TokenTransformer}[made.tokens]
        self.tokens_to_token = Tokens(in_chans, dim, module)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", sinusoids(1 + (img_size // 16) ** 2, dim), persistent=False)
        self.blocks = nn.Sequential(
            *(
                Block(dim, made.num_heads, made.mlp_ratio, qkv_bias=False, drop_path=rate, norm_layer=nn.LayerNorm)
                for rate in torch.linspace(0, drop_path_rate, made.depth).tolist()
            )
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        trunc_normal_(self.cls_token, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens_to_token(x)
        if x.shape[1] + 1 != self.pos_embed.shape[1]:
            raise ValueError("the position embedding of T2T-ViT is for images of one size")
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _entry(name: str, **defaults: Any) -> Callable[..., T2TViT]:
    """Register a model with timm; its arguments are those that timm gives every model."""

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> T2TViT:
        if pretrained:
            raise ValueError(f"there are no pretrained weights of {name} here")
        return T2TViT(**{**defaults, **options})

    create.__name__ = name
    return register_model(create)


t2t_vit_7 = _entry("t2t_vit_7", tokens="performer", embed_dim=256, depth=7, num_heads=4, mlp_ratio=2.0)
t2t_vit_14 = _entry("t2t_vit_14", tokens="performer", embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0)
t2t_vit_19 = _entry("t2t_vit_19", tokens="performer", embed_dim=448, depth=19, num_heads=7, mlp_ratio=3.0)
t2t_vit_24 = _entry("t2t_vit_24", tokens="performer", embed_dim=512, depth=24, num_heads=8, mlp_ratio=3.0)
t2t_vit_t_14 = _entry("t2t_vit_t_14", tokens="transformer", embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0)
t2t_vit_t_19 = _entry("t2t_vit_t_19", tokens="transformer", embed_dim=448, depth=19, num_heads=7, mlp_ratio=3.0)
t2t_vit_t_24 = _entry("t2t_vit_t_24", tokens="transformer", embed_dim=512, depth=24, num_heads=8, mlp_ratio=3.0)
