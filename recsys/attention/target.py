"""Target attention: a candidate looks at a history (DIN, arXiv 1706.06978, and its kin).

The query is one item per history instead of every position. Score, normalise, aggregate as always;
`weights` on request, from which the output can be rebuilt.

Dimensions: B histories, L padded length, D width, H heads, E = D / H, U hidden units of a head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recsys.attention.activations import Activate, Activation

Score = Literal["additive", "dot", "bilinear"]
Normalizer = Literal["none", "softmax", "sigmoid"]
Combine = Literal["concatenate", "average"]


class ActivationUnit(nn.Module):
    """DIN's additive score: a small network per head on [q, k, q − k, q ∘ k].

    s_h = v_h · f(W_h [q, k, q − k, q ∘ k] + b_h) + c_h.

    `reference` reads like the formula. `forward` is the same number by less work: the first layer
    is linear, so W [q, k, q − k, q ∘ k] = (W₁ + W₃) q + (W₂ − W₃ + W₄ diag q) k, one matrix per
    query, and a batched product does what would else need four D-wide inputs per event.

    Args:
        width: D.
        heads: H independent networks.
        units: U, hidden units of each.
        activation: f.
    """

    def __init__(self, width: int, heads: int, units: int, activation: Activation) -> None:
        super().__init__()
        if units < 1:
            raise ValueError(f"attention_units must be at least 1, not {units}")
        self.heads, self.units = heads, units
        self.first = nn.Linear(4 * width, heads * units)
        self.activate = Activate(activation, heads * units)
        self.last = nn.Parameter(torch.empty(heads, units))
        self.offset = nn.Parameter(torch.zeros(heads))
        nn.init.uniform_(self.last, -(units**-0.5), units**-0.5)

    def forward(self, query_BD: Tensor, keys_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Scores [B, H, L]."""
        q_FD, k_FD, difference_FD, product_FD = self.first.weight.chunk(4, 1)
        per_query_BDF = query_BD[:, :, None] * product_FD.T + (k_FD - difference_FD).T
        from_query_BF = query_BD @ (q_FD + difference_FD).T + self.first.bias
        hidden_BLF = torch.baddbmm(
            from_query_BF[:, None].to(per_query_BDF.dtype), keys_BLD, per_query_BDF
        )
        return self._score(hidden_BLF, valid_BL)

    def reference(self, query_BD: Tensor, keys_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """The same scores, as the formula is written."""
        query_BLD = query_BD[:, None].expand_as(keys_BLD)
        pairs = torch.cat([query_BLD, keys_BLD, query_BLD - keys_BLD, query_BLD * keys_BLD], dim=-1)
        return self._score(self.first(pairs), valid_BL)

    def _score(self, hidden_BLF: Tensor, valid_BL: Tensor) -> Tensor:
        hidden_BLHU = self.activate(hidden_BLF, valid_BL).unflatten(-1, (self.heads, self.units))
        scores_BLH = torch.einsum("blhu,hu->blh", hidden_BLHU, self.last.to(hidden_BLHU.dtype))
        return (scores_BLH.float() + self.offset).transpose(1, 2)


class TargetAttention(nn.Module):
    """H independent heads, in which one query per history weighs the history's events.

    * score: "additive" (DIN's activation unit), "dot" (q · k / √E with learned projections) or
      "bilinear" (q W_h k).
    * normalise: "none" (DIN: the weights say how much of the interest there is, and need not sum to
      one; with the additive score all of them start near 1, so it starts as plain pooling),
      "softmax" or "sigmoid".
    * combine: "concatenate" the heads' outputs and project them to D, or "average" them. A single
      head is passed on as it is: DIN's weighted sum.

    Args:
        width: D.
        heads: H; must divide D if the score is "dot".
        score: how an event is scored.
        normalize: how scores become weights.
        scale_by_length: divide the weights by the number of events; not with a softmax.
        combine: how heads become one output.
        units: hidden units of each head's activation unit, None for 64; other scores have none.
        activation: of the activation unit.

    Raises:
        ValueError: an unknown choice, heads < 1, or heads that do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        score: Score = "additive",
        normalize: Normalizer = "none",
        scale_by_length: bool = False,
        combine: Combine = "concatenate",
        units: int | None = None,
        activation: Activation = "dice",
    ) -> None:
        super().__init__()
        _choice("score", score, ("additive", "dot", "bilinear"))
        _choice("normalize", normalize, ("none", "softmax", "sigmoid"))
        _choice("combine_heads", combine, ("concatenate", "average"))
        if scale_by_length and normalize == "softmax":
            raise ValueError(
                "normalize=softmax takes scale_by_length=false: its weights sum to one whatever "
                "the length"
            )
        if units is not None and score != "additive":
            raise ValueError(
                f"score={score} takes attention_units=null, not {units}: the activation unit is "
                "the additive score's"
            )
        if heads < 1:
            raise ValueError(f"heads must be at least 1, not {heads}")
        if score == "dot" and width % heads:
            fitting = [h for h in range(1, width + 1) if width % h == 0]
            nearest = min(fitting, key=lambda h: abs(h - heads))
            raise ValueError(
                f"width {width} is not divisible by heads {heads}; the nearest number of heads "
                f"that divides it is {nearest}"
            )
        self.heads, self.score, self.normalize, self.combine = heads, score, normalize, combine
        self.scale_by_length = scale_by_length
        if score == "additive":
            self.unit = ActivationUnit(width, heads, 64 if units is None else units, activation)
            if normalize == "none":
                # Every event weighs 1 at first: attention starts as pooling, and learns from there.
                nn.init.ones_(self.unit.offset)
        elif score == "dot":
            self.query = nn.Linear(width, width)
            self.key = nn.Linear(width, width)
        else:
            self.form = nn.Parameter(torch.eye(width).repeat(heads, 1, 1) * width**-0.5)
        if heads > 1 and combine == "concatenate":
            self.project = nn.Linear(heads * width, width, bias=False)

    def forward(
        self,
        query_BD: Tensor,
        keys_BLD: Tensor,
        valid_BL: Tensor,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query_BD: the candidates.
            keys_BLD: the events of the histories, which are also the values.
            valid_BL: False on padding.
            weights: when a list, the weights [B, H, L] that made the output are appended.

        Returns:
            [B, D]; zeros for an empty history.
        """
        weights_BHL = self.weigh(self.scores(query_BD, keys_BLD, valid_BL), valid_BL)
        if weights is not None:
            weights.append(weights_BHL)
        return self.combined(weights_BHL, keys_BLD)

    def scores(self, query_BD: Tensor, keys_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Scores [B, H, L]."""
        if self.score == "additive":
            scores_BHL: Tensor = self.unit(query_BD, keys_BLD, valid_BL)
            return scores_BHL
        if self.score == "dot":
            q_BHE = self.query(query_BD).unflatten(-1, (self.heads, -1))
            # (W_q q + b) · (W_k k + c) = (W_kᵀ (W_q q + b)) · k + …: the history is not projected.
            key_HED = self.key.weight.unflatten(0, (self.heads, -1))
            folded_BHD = torch.einsum("bhe,hed->bhd", q_BHE, key_HED)
            constant_BH = (q_BHE * self.key.bias.unflatten(0, (self.heads, -1))).sum(-1)
            scores_BHL = folded_BHD @ keys_BLD.transpose(1, 2) + constant_BH[..., None]
            return scores_BHL.float() * q_BHE.shape[-1] ** -0.5
        folded_BHD = torch.einsum("bd,hde->bhe", query_BD, self.form)
        return (folded_BHD @ keys_BLD.transpose(1, 2)).float()

    def weigh(self, scores_BHL: Tensor, valid_BL: Tensor) -> Tensor:
        """Weights [B, H, L], zero on padding."""
        valid_B1L = valid_BL[:, None]
        if self.normalize == "softmax":
            lowest = torch.finfo(scores_BHL.dtype).min  # not -inf: no NaN for an empty history
            return torch.softmax(scores_BHL.masked_fill(~valid_B1L, lowest), -1) * valid_B1L
        weights_BHL = torch.sigmoid(scores_BHL) if self.normalize == "sigmoid" else scores_BHL
        weights_BHL = weights_BHL * valid_B1L
        if self.scale_by_length:
            weights_BHL = weights_BHL / valid_B1L.sum(-1, keepdim=True).clamp(min=1)
        return weights_BHL

    def combined(self, weights_BHL: Tensor, keys_BLD: Tensor) -> Tensor:
        """The output [B, D] that the given weights make of a history."""
        out_BHD = weights_BHL.to(keys_BLD.dtype) @ keys_BLD
        if self.heads == 1:
            return out_BHD.squeeze(1)
        if self.combine == "average":
            return out_BHD.mean(1)
        projected_BD: Tensor = self.project(out_BHD.flatten(1))
        return projected_BD


class TargetAttentionStack(nn.Module):
    """Layers of target attention: what one layer found is part of the next one's question.

    q₀ = candidate; o_l = attention_l(q_l, history); q_{l+1} = norm(q_l + o_l). The output is the
    last layer's o. One layer is plain target attention.

    Args:
        width: D.
        layers: how many.
        parameter_groups: how many of the layers have parameters of their own, shared as in
            `layers.LayerStack`; None: all.
        heads: H.
        score: see `TargetAttention`.
        normalize: see `TargetAttention`.
        scale_by_length: see `TargetAttention`.
        combine: see `TargetAttention`.
        units: see `TargetAttention`.
        activation: see `TargetAttention`.

    Raises:
        ValueError: layers or groups out of range, or what `TargetAttention` raises.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        parameter_groups: int | None,
        heads: int,
        score: Score,
        normalize: Normalizer,
        scale_by_length: bool,
        combine: Combine,
        units: int | None,
        activation: Activation,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, not {layers}")
        groups = layers if parameter_groups is None else parameter_groups
        if not 1 <= groups <= layers:
            raise ValueError(f"parameter_groups must be null or from 1 to {layers}, not {groups}")
        self.members = [layer * groups // layers for layer in range(layers)]
        self.attention = nn.ModuleList(
            TargetAttention(
                width, heads, score, normalize, scale_by_length, combine, units, activation
            )
            for _ in range(groups)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers - 1))

    def forward(
        self,
        query_BD: Tensor,
        keys_BLD: Tensor,
        valid_BL: Tensor,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """As `TargetAttention.forward`; `weights` gets one entry a layer."""
        out_BD = torch.zeros_like(query_BD)
        for layer, member in enumerate(self.members):
            if layer:
                query_BD = self.norms[layer - 1](query_BD + out_BD)
            out_BD = self.attention[member](query_BD, keys_BLD, valid_BL, weights)
        return out_BD


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
