"""The instance loss against torch.nn.functional.cross_entropy on the dense soft targets that it never makes."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from idmm_fast.losses import instance_loss


def dense(logits, a, b, lam, eps):
    c = logits.shape[1]
    lam = torch.as_tensor(lam, dtype=logits.dtype).expand(logits.shape[0]).unsqueeze(1)
    target = lam * one_hot(a, c) + (1 - lam) * one_hot(b, c)
    return cross_entropy(logits, (1 - eps) * target + eps / c)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("same", [False, True])
def test_equals_dense_cross_entropy_in_value_and_gradient(eps, same):
    """To 1e-6 in float64, for scattered and for equal indices, logits up to 100."""
    g = torch.Generator().manual_seed(0)
    for b, c, scale in ((7, 5, 1.0), (64, 2040, 1.0), (32, 300, 30.0)):
        logits = (torch.randn(b, c, generator=g, dtype=torch.float64) * scale).requires_grad_()
        a = torch.randint(0, c, (b,), generator=g)
        other = a if same else torch.randint(0, c, (b,), generator=g)
        lam = torch.rand(b, generator=g, dtype=torch.float64)
        ours, theirs = instance_loss(logits, a, other, lam, eps), dense(logits, a, other, lam, eps)
        assert abs(ours - theirs) < 1e-6
        mine, wanted = (torch.autograd.grad(x, logits)[0] for x in (ours, theirs))
        assert (mine - wanted).abs().max() < 1e-6


def test_is_pytorchs_label_smoothing_without_mixing():
    logits, a = torch.randn(16, 50, dtype=torch.float64), torch.randint(0, 50, (16,))
    assert instance_loss(logits, a, a, 1.0, 0.1) == pytest.approx(
        float(cross_entropy(logits, a, label_smoothing=0.1)), abs=1e-9
    )


def test_half_precision_logits_are_reduced_in_float32():
    logits = torch.randn(64, 2040).bfloat16()
    a, b, lam = torch.randint(0, 2040, (64,)), torch.randint(0, 2040, (64,)), torch.rand(64)
    ours = instance_loss(logits, a, b, lam, 0.1)
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(float(dense(logits.double(), a, b, lam.double(), 0.1)), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert instance_loss(logits, a, b, lam, 0.1).dtype == torch.float32


def test_rows_without_reduction():
    logits, a, lam = torch.randn(8, 9), torch.randint(0, 9, (8,)), torch.rand(8)
    rows = instance_loss(logits, a, a.flip(0), lam, 0.1, reduction="none")
    assert rows.shape == (8,)
    assert torch.isclose(rows.mean(), instance_loss(logits, a, a.flip(0), lam, 0.1))


@pytest.mark.timeout(200)
def test_compiles_without_a_graph_break():
    logits, a, lam = torch.randn(8, 30), torch.randint(0, 30, (8,)), torch.rand(8)
    compiled = torch.compile(instance_loss, fullgraph=True)
    assert torch.isclose(
        compiled(logits, a, a.flip(0), lam, 0.1), instance_loss(logits, a, a.flip(0), lam, 0.1), atol=1e-6
    )
