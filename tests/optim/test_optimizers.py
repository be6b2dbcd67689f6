"""Each optimizer moves as torch's own does, or as computed by hand; and what it does not read is refused."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
import toy
from torch import nn

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.steps import PlannedSteps
from prefopt.errors import RecipeError
from prefopt.optim import (
    OPTIMIZERS,
    OptimSettings,
    check_optimizer,
    describe,
    make_optimizer,
    peak_lr,
    set_learning_rate,
    trainable,
)
from prefopt.optim.muon import hidden_matrices
from prefopt.optim.muon_update import orthogonalize
from prefopt.trainer import Trainer

CPU = torch.device("cpu")


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3).to(dtype)


def follow(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 4) -> list[torch.Tensor]:
    """Take steps with gradients that do not depend on the weights."""
    for step in range(count):
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_adamw_is_torchs_fused_one() -> None:
    ours, plain = linear(), linear()
    found = follow(ours, make_optimizer(OptimSettings(lr=0.1, weight_decay=0.1, betas=(0.8, 0.9)), ours))
    groups = [{"params": [plain.weight], "weight_decay": 0.1}, {"params": [plain.bias], "weight_decay": 0.0}]
    expected = follow(plain, torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), fused=True))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_weight_decay_spares_vectors() -> None:
    groups = make_optimizer(OptimSettings(weight_decay=0.1), nn.Linear(3, 2)).param_groups
    assert [(group["params"][0].dim(), group["weight_decay"]) for group in groups] == [(2, 0.1), (1, 0.0)]


def test_the_update_is_one_fused_kernel_per_list() -> None:
    """Fused AdamW keeps its step counter on the device, so that an update reads nothing back."""
    optimizer = make_optimizer(OptimSettings(), nn.Linear(3, 2))
    assert all(group["fused"] for group in optimizer.param_groups)


def test_adafactor_is_torchs_with_a_smaller_bound() -> None:
    ours, plain = linear(), linear()
    settings = OptimSettings(optimizer="adafactor", lr=0.1, weight_decay=0.1, clip_threshold=2.0)
    groups = [{"params": [plain.weight], "weight_decay": 0.1}, {"params": [plain.bias]}]
    expected = follow(plain, torch.optim.Adafactor(groups, lr=0.1, d=2.0, eps=(1e-15, 1e-3)))
    found = follow(ours, make_optimizer(settings, ours))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_first_step_of_adafactor_by_hand() -> None:
    """Weights all 2, gradient [[1, 2], [2, 4]] of rank one: V is the square of it, so that the update is all 1.

    Its root mean square is 1, which is not clipped; the weights' is 2, so that each moves by 0.1 * 2.
    """
    model = nn.Linear(2, 2, bias=False)
    nn.init.constant_(model.weight, 2.0)
    model.weight.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    make_optimizer(OptimSettings(optimizer="adafactor", lr=0.1), model).step()
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 2), 1.8))


def test_adafactor_moves_bfloat16_weights_under_small_gradients() -> None:
    """With a root mean square of 1e-5, as of a clipped gradient of many weights, the step is as large as with 1.

    torch's own bound, the machine epsilon, would make it a thousandth of that.
    """
    moved = []
    for scale in (1.0, 1e-5):
        model = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
        nn.init.constant_(model.weight, 1.0)
        torch.manual_seed(0)
        model.weight.grad = scale * torch.randn(64, 64).bfloat16()
        make_optimizer(OptimSettings(optimizer="adafactor", lr=0.5), model).step()
        moved.append((model.weight.detach() - 1).float().square().mean().sqrt().item())
    assert moved[1] == pytest.approx(moved[0], rel=0.05) and moved[0] > 0.1  # bfloat16: 8 bits


# -- muon -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_muon_is_torchs_scaled_to_adamw(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape).to(dtype)
    ours, plain = (nn.Linear(*shape[::-1], bias=False) for _ in range(2))
    for model in (ours, plain):
        model.weight = nn.Parameter(start.clone())
    settings = OptimSettings(optimizer="muon", lr=0.1, weight_decay=0.1, momentum=0.9)
    theirs = torch.optim.Muon(
        plain.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    found, expected = follow(ours, make_optimizer(settings, ours)), follow(plain, theirs)
    assert torch.equal(found[0], expected[0])


def test_the_rest_of_muons_parameters_is_adamws() -> None:
    """A bias, beside a matrix of Muon's, moves as under AdamW alone, by the same learning rate and its own state."""
    ours, plain = linear(), linear()
    optimizer = make_optimizer(OptimSettings(optimizer="muon", lr=0.1, weight_decay=0.1), ours)
    (_, bias), (_, expected) = (
        follow(ours, optimizer),
        follow(plain, torch.optim.AdamW([plain.bias], lr=0.1, weight_decay=0.0, fused=True)),
    )
    assert torch.equal(bias, expected)
    assert set(optimizer.state[ours.bias]) == {"exp_avg", "exp_avg_sq", "step"}
    assert set(optimizer.state[ours.weight]) == {"momentum_buffer"}


def test_an_orthogonalised_matrix_has_singular_values_near_one() -> None:
    """Between 0.68 and 1.13 is what five iterations with these coefficients promise, and bfloat16 adds to it."""
    torch.manual_seed(0)
    for shape in ((8, 8), (4, 16), (16, 4)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, dtype=torch.float64)).float())
        assert values.min() > 0.6 and values.max() < 1.25


def test_muon_survives_torchs_own_state_dict() -> None:
    first, second = linear(), linear()
    settings = OptimSettings(optimizer="muon", lr=0.1)
    optimizer = make_optimizer(settings, first)
    follow(first, optimizer)
    second.load_state_dict(first.state_dict())
    other = make_optimizer(settings, second)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, other):
        set_learning_rate(each, 0.05)
    found = follow(second, other)
    assert all(torch.equal(a, b) for a, b in zip(found, follow(first, optimizer), strict=True))


def names(model: nn.Module) -> set[str]:
    """Return what Muon takes, without the numbers of layers."""
    return {name.replace(".0.", ".").replace(".1.", ".") for name in hidden_matrices(model)}


LLAMA = {f"model.layers.self_attn.{part}_proj.weight" for part in "qkvo"} | {
    f"model.layers.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
}


def test_muon_takes_the_hidden_matrices_of_llama() -> None:
    model = toy.llama()
    assert names(model) == LLAMA
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    assert names(model) == LLAMA


def test_muon_takes_the_hidden_matrices_of_gpt2() -> None:
    """Its weights lie transposed, and are matrices all the same; positions are embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=16, n_embd=8, n_layer=2, n_head=2))
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names(model) == {f"transformer.h.{part}.weight" for part in parts}


def test_stacked_experts_are_adamws_and_said_to_be() -> None:
    """Two layers with 4 experts each, stacked in two tensors of three dimensions."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    settings: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "moe_intermediate_size": 6}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "num_hidden_layers": 2}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=31, head_dim=4, **settings))
    stacked = [p for p in model.parameters() if p.dim() == 3]
    assert len(stacked) == 4
    assert not any(".experts." in name for name in names(model))
    assert "model.layers.mlp.gate.weight" in names(model)
    optimizer = make_optimizer(OptimSettings(optimizer="muon", lr=1e-3), model)
    told = describe(OptimSettings(optimizer="muon"), optimizer, model)
    size = sum(p.numel() for p in stacked)
    assert f"4 of them of three dimensions or more, as stacked experts are ({size:,})" in told
    grouped = {id(p): "momentum" in group for group in optimizer.param_groups for p in group["params"]}
    assert not any(grouped[id(p)] for p in stacked)
    assert grouped.keys() == {id(p) for p in model.parameters()}


def test_muon_takes_the_factors_of_an_adapter_but_on_embeddings_and_head() -> None:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "embed_tokens", "lm_head"]
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(toy.llama(), config)
    taken = hidden_matrices(model)
    assert len(taken) == 4 and all(".q_proj.lora_" in name for name in taken)
    assert len(trainable(model)) == 8


# -- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "betas of adafactor": (
        {"optimizer": "adafactor", "betas": (0.9, 0.9)},
        "optim.betas: adafactor does not read it, but beta2_decay, clip_threshold, weight_decay. Take it out.",
    ),
    "momentum of adamw": ({"momentum": 0.9}, "optim.momentum: adamw does not read it, but betas, eps,"),
    "exponent of muon": (
        {"optimizer": "muon", "beta2_decay": -1.0},
        "optim.beta2_decay: muon does not read it",
    ),
    "unknown": ({"optimizer": "adam-w"}, "optim.name: there is no optimizer 'adam-w'. Choose from: adamw,"),
    "rate of a function": ({"optimizer": make_optimizer, "lr": 1.0}, "optim.lr: the function that builds"),
    "decay of a function": ({"optimizer": make_optimizer, "weight_decay": 1.0}, "optim.weight_decay: the"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_optimizer_does_not_read_is_refused(name: str) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(RecipeError) as caught:
        OptimSettings(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_spread_over_ranks_are_refused_where_whole_ones_are_needed() -> None:
    for name in ("adamw", "muon"):
        check_optimizer(OptimSettings(optimizer=name), CPU, is_sharded=True)
    with pytest.raises(
        RecipeError, match=r"optim\.name: adafactor averages whole rows and columns, which FSDP2"
    ):
        check_optimizer(OptimSettings(optimizer="adafactor"), CPU, is_sharded=True)


def test_eight_bits_are_refused_where_they_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = OptimSettings(optimizer="adamw_8bit")
    with pytest.raises(RecipeError, match=r"optim\.name: adamw_8bit needs (bitsandbytes|an NVIDIA GPU)"):
        check_optimizer(settings, CPU, is_sharded=False)
    monkeypatch.setattr("prefopt.optim.adamw_8bit.find_spec", lambda name: object())
    with pytest.raises(RecipeError, match="needs an NVIDIA GPU, but this run is on cpu"):
        check_optimizer(settings, CPU, is_sharded=False)
    with pytest.raises(RecipeError, match="which FSDP2 spreads over ranks"):
        check_optimizer(settings, torch.device("cuda"), is_sharded=True)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_the_state_of_eight_bits_is_what_bitsandbytes_makes() -> None:
    """Of a weight large enough for blocks, the last of them short, and of a small one; made on the CPU."""
    model = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 3))
    optimizer: Any = make_optimizer(OptimSettings(optimizer="adamw_8bit", lr=0.1), model)
    for at, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, at, index)
            told = OPTIMIZERS["adamw_8bit"].keeps(parameter)
            found = optimizer.state[parameter]
            assert found.keys() == told.keys()
            for field, value in told.items():
                if isinstance(value, torch.Tensor):
                    assert (found[field].shape, found[field].dtype) == (value.shape, value.dtype), field
                else:
                    assert type(found[field]) is type(value) is int


# -- an optimizer of one's own --------------------------------------------------------------------


def trainer(optim: Any) -> Trainer:
    data = toy.table(24)
    return Trainer(
        toy.policy(),
        build_loss({"name": "simpo"}),
        PlannedSteps(toy.plan(data), data),
        num_steps=4,
        optim=optim,
    )


def own(parameters: Any) -> torch.optim.Optimizer:
    norms = [p for p in parameters.values() if p.dim() < 2]
    rest = [p for p in parameters.values() if p.dim() >= 2]
    return torch.optim.SGD([{"params": norms, "lr": 0.01}, {"params": rest, "lr": 0.04}])


def test_every_group_keeps_its_share_of_the_rate() -> None:
    """The schedule is laid over the largest of a function's rates: 1/4 of it, of 0.04, for the norms."""
    made = trainer(OptimSettings(optimizer=own, schedule="linear", warmup=0, clip=None))
    for step, result in enumerate(made):
        rate = 0.04 * (1 - step / 4)
        assert result.lr == pytest.approx(rate)
        assert [group["lr"] for group in made.optimizer.param_groups] == pytest.approx([rate / 4, rate])


def test_a_bare_function_gets_the_default_schedule() -> None:
    made = trainer(own)
    assert made.settings == OptimSettings(optimizer=own) and peak_lr(made.optimizer) == made.peak_lr == 0.04
    before = made.parameters["lm_head.weight"].detach().clone()
    list(made)
    assert not torch.equal(made.parameters["lm_head.weight"], before)


def test_a_function_that_trains_something_else_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"optim: the optimizer was given a tensor of shape \(3,\)"):
        trainer(lambda parameters: torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1))


def test_what_a_function_leaves_out_does_not_count_in_the_norm() -> None:
    """Its optimizer moves the head alone, by nothing: every pass finds the norm of the first one again."""

    def head(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([parameters["lm_head.weight"]], lr=1e-300)

    def norms(optim: Any) -> list[float]:
        data = toy.table(8)
        steps = PlannedSteps(toy.plan(data), data)
        made = Trainer(toy.policy(), build_loss({"name": "simpo"}), steps, num_steps=2, optim=optim)
        return [result.grad_norm.item() for result in made]

    first, second = norms(OptimSettings(optimizer=head, warmup=0, schedule="constant", clip=None))
    assert first == pytest.approx(second, rel=1e-9)
    assert first < 0.99 * norms(OptimSettings(lr=1e-12, warmup=0))[0]


def spent(parameters: Any) -> torch.optim.Optimizer:
    """Return what another trainer holds."""
    return trainer(own).optimizer


def warming(parameters: Any) -> torch.optim.Optimizer:
    """Return one whose own schedule begins at zero."""
    optimizer = own(parameters)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    return optimizer


UNDRIVABLE = {
    "no optimizer": (lambda parameters: None, "the function returned a NoneType. Return a torch.optim"),
    "closure": (lambda parameters: torch.optim.LBFGS(parameters.values()), "LBFGS evaluates the loss itself"),
    "driven before": (spent, "another trainer has driven this SGD"),
    "zero": (warming, "the largest learning rate of SGD is 0, so nothing would move"),
}


@pytest.mark.parametrize("name", UNDRIVABLE)
def test_a_function_whose_optimizer_cannot_be_driven_is_refused(name: str) -> None:
    make, message = UNDRIVABLE[name]
    with pytest.raises(RecipeError, match=message):
        trainer(make)
