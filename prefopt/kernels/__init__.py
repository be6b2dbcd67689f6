"""The ops that make preference training fast, each behind one door that picks its back-end."""

from __future__ import annotations

from prefopt.kernels.linear_logp import TokenLogps, token_logps, which_impl
from prefopt.kernels.prefix_attention import tree_attention
from prefopt.kernels.token_kl import token_kl

__all__ = ["TokenLogps", "token_kl", "token_logps", "tree_attention", "which_impl"]
