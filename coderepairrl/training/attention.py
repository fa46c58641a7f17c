"""Attention over a packed row: sequences laid end to end, prefixes that several of them share computed once.

A row is cut into nodes: runs of new tokens. The queries of a node see the keys of its path, which is everything from
its sequence's first token to the node's end; its own tokens come last, so the mask is causal, aligned at the end of the
keys, and a sliding window of w lets a query see its own key and the w - 1 before it. A sequence that shares nothing is
one node whose path is itself. Registered in transformers as the attention "packed".

Legend: T tokens of the row, K sum of the lengths of all paths, H heads, D their size.
"""

from functools import cache
from inspect import signature

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.utils import is_flash_attn_4_available

from coderepairrl.errors import ConfigError
from coderepairrl.training.batch import Layout
from coderepairrl.training.sequence_parallel import RowGroup

NAME = "packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: int | None,
    *,
    layout: Layout | None = None,
    row_group: RowGroup | None = None,
    scaling: float | None = None,
    **more,
) -> tuple[torch.Tensor, None]:
    """query (1, H, T, D), key and value (1, H or fewer, T, D) -> (1, T, H, D).

    With a `row_group` T is this rank's part of the row. `attention_mask`: the sliding window, as `_mask` has it.
    Raises ConfigError for what it doesn't compute.
    """
    if layout is None:
        raise ConfigError(
            f"{type(module).__name__}: its model does not hand the layout of a packed row to its "
            "attention: use another model"
        )
    for name, what in _MORE.items():
        if more.get(name) is not None or (name == "mask" and isinstance(attention_mask, torch.Tensor)):
            raise ConfigError(f"{type(module).__name__}: packed rows are computed without {what}: use another model")
    options = {"scaling": scaling, "window": attention_mask}
    if row_group is None:
        return _attend(query, key, value, layout, **options), None
    heads = row_group.split_heads(query, key, value, sum(layout.query_lengths))
    return row_group.join_heads(_attend(*heads, layout, **options)), None


_MORE = {
    "mask": "an attention mask of the model's own",
    "softcap": "a soft cap on attention scores",
    "s_aux": "attention sinks",
    "position_bias": "a bias by position",
    "alibi": "ALiBi",
}


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    if query.is_cuda and query.dtype != torch.float32:
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, H, D)
        if layout.path_index is not None:
            key, value = key.index_select(0, layout.path_index), value.index_select(0, layout.path_index)
        return _flash(query, key, value, layout, scaling, window)[None]
    if layout.path_index is not None:
        key, value = key.index_select(2, layout.path_index), value.index_select(2, layout.path_index)
    pieces, dtype = [], query.dtype
    # half precision comes here on CPUs only, whose attention is 1.5 to 2.5 times as fast in float32 (its backward pass
    # is), also under autocast
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (
            tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (query, key, value)
        )
        for q, k, v in zip(
            query.split(layout.query_lengths, 2),
            key.split(layout.key_lengths, 2),
            value.split(layout.key_lengths, 2),
            strict=True,
        ):
            new, seen = q.shape[2], k.shape[2]
            narrow, mask = window is not None and window < seen, None
            if narrow or new < seen:
                mask = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
            if narrow:
                mask = mask.triu(seen - new - window + 1)
            attend = torch.nn.functional.scaled_dot_product_attention
            pieces.append(
                attend(q, k, v, mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
            )
    return torch.cat(pieces, 2).transpose(1, 2).to(dtype).contiguous()


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """query (T, H, D), key and value (K, H or fewer, D), half precision on CUDA -> (T, H, D)."""
    longest = max(layout.query_lengths), max(layout.key_lengths)
    if window is None and _has_flash_attention_4():
        from flash_attn.cute import flash_attn_varlen_func

        return flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=layout.query_offsets,
            cu_seqlens_k=layout.key_offsets,
            max_seqlen_q=longest[0],
            max_seqlen_k=longest[1],
            softmax_scale=scaling,
            causal=True,
        )[0]
    from torch.nn.attention.varlen import varlen_attn

    # torch before 2.13 needs no word for it
    fewer_keys = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    return varlen_attn(
        query,
        key,
        value,
        layout.query_offsets,
        layout.key_offsets,
        *longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **fewer_keys,
    )


@cache
def _has_flash_attention_4() -> bool:
    """It has kernels of its own for Hopper and Blackwell, twice as fast there as torch's varlen_attn, which is
    FlashAttention 2."""
    return is_flash_attn_4_available() and torch.cuda.get_device_capability() >= (9, 0)


def check(config: PretrainedConfig) -> None:
    """Raises ConfigError for models whose attention would be computed wrongly on packed rows."""
    refuse = lambda cause: ConfigError(f"{config.model_type}: {cause}: use another model")
    if other := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise refuse(
            f"layers of {', '.join(sorted(other))}: packed rows are only right for full causal attention and "
            "sliding windows"
        )
    if getattr(config, "attn_logit_softcapping", None):
        raise refuse(
            f"attn_logit_softcapping={config.attn_logit_softcapping}: packed rows are computed without "
            + _MORE["softcap"]
        )
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {entry.get("rope_type") for entry in (rope, *rope.values()) if isinstance(entry, dict)}
    for kind in kinds & {"dynamic", "longrope"}:
        raise refuse(f"rope_type={kind}: angles depend on how long a sequence is, and a packed row holds several")


def _mask(*_, local_size: int | None = None, use_vmap: bool = False, **__) -> int | None:
    """In place of a mask: the layout says which tokens are there, only a sliding window is left to be said."""
    if use_vmap:
        raise ConfigError(f"packed rows are computed without {_MORE['mask']}: use another model")
    return local_size


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)
