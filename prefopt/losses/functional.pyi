# Written by docs/make_functional_stub.py from prefopt/losses/. Edit those, then run `make pages`.
# fmt: off
# ruff: noqa: E501, PYI021

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from prefopt.losses import Loss
from prefopt.losses._on_sums import AnswerLoss as AnswerLoss
from prefopt.losses._on_sums import CarriedAnswerLoss as CarriedAnswerLoss
from prefopt.losses._on_sums import CarriedPairLoss as CarriedPairLoss
from prefopt.losses._on_sums import PairLoss as PairLoss

def on_sums(loss: Loss) -> Callable[..., Any]:
    """Return `loss` as a function of summed log-probs, with its own settings, defaults and ranges."""

def alpha_margin_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None, rejected_lengths: Tensor | None = None,
    *, margin_mean: Tensor | None = None, margin_std: Tensor | None = None, beta: float = 2.5, gamma: float = 1.5, alpha: float = 0.2, momentum: float = 0.9, norm: Literal["sum", "mean"] = "mean",
) -> CarriedPairLoss:
    """Pay -log sigmoid of the policy's own margin beyond a target that differs from pair to pair."""

def alphapo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    chosen_lengths: Tensor, rejected_lengths: Tensor,
    *, beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25, label_smoothing: float = 0.0,
) -> PairLoss:
    """Pay -log sigmoid of the margin of bent per-token rewards beyond a target margin, without a reference."""

def aot_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.01, label_smoothing: float = 0.0,
) -> PairLoss:
    """Pay for quantiles of the policy's margins that do not lie beyond those of the reference."""

def aot_unpaired_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    is_desirable: Tensor,
    *, beta: float = 0.01, label_smoothing: float = 0.0,
) -> AnswerLoss:
    """Pay for quantiles of the desirable answers' rewards that do not lie beyond those of the undesirable."""

def apo_down_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1,
) -> PairLoss:
    """Pay for a chosen answer above its anchor and for a rejected one that is not further below."""

def apo_zero_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1,
) -> PairLoss:
    """Pay for a chosen answer that is not above its anchor and a rejected one that is not below."""

def apo_zero_unpaired_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    is_desirable: Tensor,
    *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
) -> AnswerLoss:
    """Pay for the probability that an answer lies on the wrong side of the reference."""

def bco_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, baseline: Tensor | None = None, baseline_count: Tensor | None = None, beta: float = 0.01,
) -> CarriedPairLoss:
    """Pay for classifying the chosen answer as wanted and the rejected one as not, around a moving line."""

def bco_pair_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.01,
) -> PairLoss:
    """Pay for classifying the chosen answer as wanted and the rejected one as unwanted, each by itself."""

def bco_unpaired_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    is_desirable: Tensor,
    *, baseline: Tensor | None = None, baseline_count: Tensor | None = None, beta: float = 0.01,
) -> CarriedAnswerLoss:
    """Pay for classifying each answer as wanted or not, around the running mean of all rewards."""

def beta_dynamic_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, pair_seed: Tensor, gap_mean: Tensor | None = None, gap_std: Tensor | None = None, beta: float = 0.1, alpha: float = 0.6, rho: float = 0.2, momentum: float = 0.9,
) -> CarriedPairLoss:
    """Pay DPO's loss with a beta that follows the step's margins, for a sample without its outliers."""

def cal_dpo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.002,
) -> PairLoss:
    """Pay -log sigmoid of the log-ratio margin, plus how far each log-ratio is from +-1 / (2 beta)."""

def convex_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, link: Literal["logistic", "hinge", "squared", "exponential", "truncated_quadratic", "savage"] = "logistic",
) -> PairLoss:
    """Pay a chosen convex function of the reward margin between the chosen and the rejected answer."""

def cpo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    chosen_lengths: Tensor, rejected_lengths: Tensor,
    *, mean_chosen_length: Tensor | None = None, beta: float = 0.1, alpha: float = 1.0, label_smoothing: float = 0.0, link: Literal["logistic", "hinge", "ipo"] = "logistic", nll: Literal["sequence", "batch_token"] = "sequence",
) -> PairLoss:
    """Pay -log sigmoid of the difference of log-probs, plus alpha times the chosen answer's NLL."""

def discopop_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.05, tau: float = 0.05,
) -> PairLoss:
    """Pay a blend of logistic and exponential loss that leans on the exponential as the margin grows."""

def dpo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, label_smoothing: float = 0.0,
) -> PairLoss:
    """Pay -log sigmoid of the reward margin between the chosen and the rejected answer."""

def dpo_norm_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    chosen_lengths: Tensor, rejected_lengths: Tensor,
    *, beta: float = 5.0, label_smoothing: float = 0.0,
) -> PairLoss:
    """Pay the DPO loss on log-ratios averaged over tokens instead of summed."""

def dpop_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.3, lam: float = 50.0,
) -> PairLoss:
    """Pay the DPO loss on a margin reduced by how far the chosen answer has fallen below the reference."""

def exo_k_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    group_sizes: Sequence[int] | Tensor,
    *, answer_score: Tensor, beta: float = 0.1, target: Literal["reward", "preference"] = "reward", beta_r: float = 0.1, label_smoothing: float = 0.001,
) -> PairLoss:
    """Pay the reverse KL from the policy's choice within the group to that of the scores."""

def exo_pref_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, label_smoothing: float = 0.001,
) -> PairLoss:
    """Pay the reverse KL from the policy's choice within the pair to the label's."""

def exo_rw_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, chosen_score: Tensor, rejected_score: Tensor, beta: float = 0.1, beta_r: float = 0.1,
) -> PairLoss:
    """Pay the reverse KL from the policy's choice within the pair to the softmax of the scores."""

def flex_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta_chosen: float = 0.1, beta_rejected: float = 0.08,
) -> PairLoss:
    """Pay -log sigmoid of the margin with separate reward scales for the chosen and the rejected answer."""

def focal_hard_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, gamma: float = 2.0,
) -> PairLoss:
    """Pay the DPO loss times (1 - sigmoid(margin))^gamma, so that well-ranked pairs weigh less."""

def focal_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, gamma: float = 0.05, detach_weight: bool = False,
) -> PairLoss:
    """Pay the DPO loss times sigmoid(margin)^gamma, so that mis-ranked pairs weigh less."""

def hinge_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.05,
) -> PairLoss:
    """Pay what the reward margin falls short of one."""

def infonca_k_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    group_sizes: Sequence[int] | Tensor,
    *, answer_score: Tensor, beta: float = 0.01, tau: float = 1.0,
) -> PairLoss:
    """Pay the cross-entropy between the softmax of the scores and that of the rewards."""

def ipo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None, rejected_lengths: Tensor | None = None,
    *, beta: float = 0.1, norm: Literal["sum", "mean"] = "mean",
) -> PairLoss:
    """Pay the squared distance of the log-ratio margin from 1 / (2 beta)."""

def joint_prompt_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, label_smoothing: float = 0.0,
) -> PairLoss:
    """Pay the DPO loss of a pair whose two answers may reply to different prompts."""

def kto_loss(
    policy_logps: Tensor, policy_kl_logps: Tensor,
    ref_logps: Tensor, ref_kl_logps: Tensor,
    is_desirable: Tensor,
    *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
) -> AnswerLoss:
    """Pay for the probability that an answer lies on the wrong side of the policy's mean drift."""

def mappo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, chosen_score: Tensor, rejected_score: Tensor, beta: float = 0.1,
) -> PairLoss:
    """Pay the DPO loss with the rejected answer's log-ratio multiplied by the gap between the scores."""

def nca_k_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    group_sizes: Sequence[int] | Tensor,
    *, answer_score: Tensor, beta: float = 0.01, tau: float = 1.0,
) -> PairLoss:
    """Pay for classifying answers as wanted in proportion to their scores, and every answer as noise."""

def nca_pair_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.01,
) -> PairLoss:
    """Pay for classifying the chosen answer as wanted and either answer as noise, each by itself."""

def offset_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, chosen_score: Tensor, rejected_score: Tensor, beta: float = 0.1, alpha: float = 1.0, scale: Literal["log", "identity"] = "log",
) -> PairLoss:
    """Pay the DPO loss on the margin beyond an offset that the gap of the data's scores sets."""

def orpo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    chosen_lengths: Tensor, rejected_lengths: Tensor,
    *, mean_chosen_length: Tensor | None = None, lam: float = 0.1, nll: Literal["sequence", "batch_token"] = "sequence",
) -> PairLoss:
    """Pay the chosen answer's NLL plus lam times -log sigmoid of the log odds ratio of the pair."""

def plackett_luce_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    group_sizes: Sequence[int] | Tensor,
    *, answer_score: Tensor, beta: float = 0.1,
) -> PairLoss:
    """Pay the negative log-likelihood of the ranking, the best answer drawn first, then the next best."""

def pro_rank_loss(
    policy_logps: Tensor, group_sizes: Sequence[int] | Tensor,
    lengths: Tensor,
    *, answer_score: Tensor, alpha: float = 0.05, norm: Literal["sum", "mean"] = "sum",
) -> PairLoss:
    """Pay for each answer that is not told from all worse ones, by as much as its score is higher."""

def prompt_contrast_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, label_smoothing: float = 0.0,
) -> PairLoss:
    """Pay -log sigmoid of the gap between one answer's rewards after the prompt it fits and after the other."""

def rdpo_length_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    chosen_lengths: Tensor, rejected_lengths: Tensor,
    *, beta: float = 0.1, alpha: float = 0.01,
) -> PairLoss:
    """Pay the DPO loss on a margin that is larger the longer the chosen answer is than the rejected one."""

def ref_scale_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, gamma: float = 0.5,
) -> PairLoss:
    """Pay the DPO loss with the reference's log-probs multiplied by ``gamma``."""

def relative_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, prompt_embedding: Tensor | None = None, beta: float = 0.1, weighting: Literal["embedding", "diagonal"] = "embedding", tau: float = 0.5, diagonal_weight: float = 0.8,
) -> PairLoss:
    """Pay for each chosen answer that is not better than the rejected answers, to other prompts too."""

def reverse_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, pair_margin: Tensor, beta: float = 0.1, gamma: float = 0.1,
) -> PairLoss:
    """Pay the DPO loss on the margin beyond gamma times the margin that the data gives each pair."""

def reward_aware_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None, rejected_lengths: Tensor | None = None,
    *, chosen_score: Tensor, rejected_score: Tensor, beta: float = 0.2, eta: float = 1.0, divergence: Literal["backward_kl", "forward_kl", "squared"] = "backward_kl", norm: Literal["sum", "mean"] = "sum",
) -> PairLoss:
    """Pay the divergence between the policy's reward margin and the margin of the data's scores."""

def robust_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.1, label_smoothing: float = 0.1,
) -> PairLoss:
    """Pay the DPO loss, corrected so that labels flipped at random leave its expectation as it is."""

def rrhf_loss(
    policy_logps: Tensor, group_sizes: Sequence[int] | Tensor,
    lengths: Tensor,
    *, answer_score: Tensor, alpha: float = 1.0, lam: float = 1.0,
) -> PairLoss:
    """Pay for every pair of answers that the policy ranks wrongly, plus the NLL of the best answer."""

def simpo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    chosen_lengths: Tensor, rejected_lengths: Tensor,
    *, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0, link: Literal["logistic", "hinge"] = "logistic",
) -> PairLoss:
    """Pay -log sigmoid of the per-token reward margin beyond a target margin, without a reference."""

def slic_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    chosen_lengths: Tensor, rejected_lengths: Tensor,
    *, mean_chosen_length: Tensor | None = None, delta: float = 1.0, lam: float = 0.1, nll: Literal["sequence", "batch_token"] = "sequence",
) -> PairLoss:
    """Pay what the chosen log-prob's lead lacks to ``delta``, plus the chosen answer's NLL, without a reference."""

def soft_label_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, soft_label: Tensor, beta: float = 0.1,
) -> PairLoss:
    """Pay the cross-entropy between the label's probability in the data and the policy's."""

def spo_selfsup_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, pair_margin: Tensor, beta: float = 0.1, gamma: float = 0.1, spacing: float = 1.0, max_degree: float = 3.0,
) -> PairLoss:
    """Pay the DPO loss plus gamma times the cost of classifying how much better the chosen answer is."""

def sppo_hard_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, beta: float = 0.001,
) -> PairLoss:
    """Pay the squared distance of the chosen log-ratio from 0.5 / beta and of the rejected one from -0.5 / beta."""

def sppo_k_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    group_sizes: Sequence[int] | Tensor,
    *, answer_score: Tensor, beta: float = 0.001,
) -> PairLoss:
    """Pay the mean squared distance of the answers' log-ratios from their centred win probabilities over beta."""

def sppo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
    *, chosen_score: Tensor, rejected_score: Tensor, beta: float = 0.001,
) -> PairLoss:
    """Pay the squared distance of each answer's log-ratio from its centred win probability over beta."""

def tree_loss(
    policy_logps: Tensor, ref_logps: Tensor,
    group_sizes: Sequence[int] | Tensor,
    *, answer_score: Tensor, beta: float = 0.5, ranks: Literal["policy", "score"] = "policy",
) -> PairLoss:
    """Pay the DPO loss of every pair in the list, weighted by what swapping the two would do to the ranking."""
