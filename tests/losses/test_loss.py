"""The instance loss against torch.nn.functional.cross_entropy on the dense soft targets that it never makes."""

import math

import numpy as np
import pytest
import sharded_cases
import torch
from helpers import ForkedScript, run_forked
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, one_hot

from idmm_fast.losses import ShardedHead, fused_instance_loss, instance_loss, sqrt_kl_loss
from idmm_fast.losses.fused_step import rows_that_fit


def dense(logits, a, b, lam, eps):
    c = logits.shape[1]
    lam = torch.as_tensor(lam, dtype=logits.dtype).expand(logits.shape[0]).unsqueeze(1)
    target = lam * one_hot(a, c) + (1 - lam) * one_hot(b, c)
    return cross_entropy(logits, (1 - eps) * target + eps / c)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.8])
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


def infinite(eps):
    """(logits of -inf in each place that a loss looks at, idx_a, idx_b, lam, the rows' losses, their sum's gradient).

    Losses and gradient are those of PyTorch's cross entropy of class indices.
    """
    logits = torch.randn(6, 700, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[:, :300] = -torch.inf  # of the fused form, whole tiles
    a = torch.tensor([500, 500, 500, 7, 500, 7])
    b = torch.tensor([500, 7, 600, 500, 7, 7])
    lam = torch.tensor([1.0, 1.0, 0.3, 0.0, 0.5, 1.0], dtype=torch.float64)
    x = logits.clone().requires_grad_()
    rows = []
    for k in range(6):
        parts = [(share, idx[k : k + 1]) for share, idx in ((float(lam[k]), a), (1 - float(lam[k]), b)) if share]
        rows.append(sum(share * cross_entropy(x[k : k + 1], idx, label_smoothing=eps) for share, idx in parts))
    rows = torch.stack(rows)
    return logits, a, b, lam, rows.detach(), torch.autograd.grad(rows.sum(), x)[0]


@pytest.mark.parametrize("form", ["eager", "compiled", "fused", "fused, little memory", "sharded"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_logits_of_minus_infinity(form, eps, monkeypatch):
    """A class that is ruled out (its bias is -inf) makes the loss infinite if it is a target with weight, else not."""
    logits, a, b, lam, wanted, d_wanted = infinite(eps)
    assert wanted.isfinite().tolist() == ([True, True, True, True, False, False] if eps == 0 else [False] * 6)
    rows = []
    for k in range(6):
        o, idx_a, idx_b, share = logits[k : k + 1].clone().requires_grad_(), a[k : k + 1], b[k : k + 1], lam[k : k + 1]
        if form in ("eager", "compiled"):
            with monkeypatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: form == "compiled")
                loss = instance_loss(o, idx_a, idx_b, share, eps)
        elif form == "sharded":
            head = ShardedHead(1, 700).double()
            torch.nn.init.zeros_(head.weight)
            head.bias = torch.nn.Parameter(logits[k].clone())
            loss = head.loss(torch.zeros(1, 1, dtype=torch.float64), idx_a, idx_b, share, eps)
        else:
            memory = {} if form == "fused" else {"memory": 1000}
            bias = logits[k].clone().requires_grad_()
            loss = fused_instance_loss(
                torch.zeros_like(bias[None, :1]),
                torch.zeros_like(bias[:, None]),
                bias,
                idx_a,
                idx_b,
                share,
                eps,
                **memory,
            )
        rows.append(loss.detach())
        leaf = o if form in ("eager", "compiled") else head.bias if form == "sharded" else bias
        gradient = torch.autograd.grad(loss, leaf)[0].reshape(-1)
        assert torch.allclose(gradient, d_wanted[k], atol=1e-12), k
    assert torch.allclose(torch.stack(rows), wanted), rows


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
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(backend):
    torch._dynamo.reset()
    logits, a, lam = torch.randn(8, 30), torch.randint(0, 30, (8,)), torch.rand(8)
    compiled = torch.compile(instance_loss, fullgraph=True, backend=backend)
    assert torch.isclose(
        compiled(logits, a, a.flip(0), lam, 0.1), instance_loss(logits, a, a.flip(0), lam, 0.1), atol=1e-6
    )


# --- bad input

GOOD = {
    "logits": torch.zeros(4, 9),
    "idx_a": torch.arange(4),
    "idx_b": torch.arange(4),
    "lam": torch.full((4,), 0.5),
    "eps": 0.1,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"idx_a": torch.tensor([0, 1, 2, 9])}, r"idx_a must be within 0\.\.8, and holds 9"),
        ({"idx_b": torch.tensor([0, -1, 2, 3])}, "idx_b must be within .* holds -1"),
        ({"idx_a": torch.arange(4.0)}, "idx_a must be int64"),
        ({"idx_b": torch.arange(3)}, "idx_b must have an entry for each of the 4 rows"),
        ({"lam": torch.tensor([0.5, 1.5, 0, 0])}, r"lam, the weight of idx_a, must be within 0\.\.1, and holds 1.5"),
        ({"lam": torch.tensor([0.5, math.nan, 0, 0])}, "lam, the weight"),
        ({"lam": 2}, "lam, the weight"),
        ({"lam": torch.ones(4, dtype=torch.int64)}, "lam must be floating point"),
        ({"eps": -0.1}, "eps, the label smoothing"),
        ({"idx_a": torch.arange(4, device="meta")}, "idx_a is on meta"),
        ({"logits": torch.zeros(4, 9, dtype=torch.int64)}, "logits must be floating point"),
    ],
)
def test_bad_input_is_named(change, says):
    with pytest.raises(ValueError, match=says):
        instance_loss(**{**GOOD, **change})
    if "logits" not in change:
        rest = {k: v for k, v in {**GOOD, **change}.items() if k != "logits"}
        with pytest.raises(ValueError, match=says):
            fused_instance_loss(torch.zeros(4, 5), torch.zeros(9, 5), torch.zeros(9), **rest)


def test_features_that_do_not_fit_the_head_are_named():
    rest = {k: v for k, v in GOOD.items() if k != "logits"}
    with pytest.raises(ValueError, match="do not fit"):
        fused_instance_loss(torch.zeros(4, 6), torch.zeros(9, 5), torch.zeros(9), **rest)


# --- the fused form


def random_case(batch, classes, d, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, d, generator=g, dtype=dtype).requires_grad_()
    weight = (0.3 * torch.randn(classes, d, generator=g, dtype=dtype)).requires_grad_()
    bias = torch.randn(classes, generator=g, dtype=dtype).requires_grad_()
    a, b = torch.randint(0, classes, (batch,), generator=g), torch.randint(0, classes, (batch,), generator=g)
    b[: batch // 5] = a[: batch // 5]
    return z, weight, bias, a, b, torch.rand(batch, generator=g, dtype=dtype)


def relative_error(ours, theirs):
    """The largest difference, relative to the largest entry."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("batch", "classes", "memory"),
    [
        (33, 5, 1 << 30),
        (70, 3000, 1 << 30),
        (70, 3000, 4 * 3000 * 40),
        (70, 3000, 1),
        (16, 200_000, 1 << 30),
        (16, 200_000, 1),
    ],
)
def test_fused_equals_dense_in_value_and_all_gradients(batch, classes, memory, dtype, tolerance):
    """With all of exp(o) kept, with some rows at a time, and with none; eps 0.1, 0 and DIET's 0.8 (2302.10260)."""
    z, weight, bias, a, b, lam = random_case(batch, classes, 24, dtype)
    for eps in (0.1, 0.0, 0.8):
        exact = [
            v.detach().double().requires_grad_() for v in (z, weight, bias)
        ]  # float32's own dense form is off by as much as ours
        theirs = dense(exact[0] @ exact[1].T + exact[2], a, b, lam.double(), eps)
        ours = fused_instance_loss(z, weight, bias, a, b, lam, eps, memory=memory)
        assert relative_error(ours.detach(), theirs.detach()) < tolerance
        wanted = torch.autograd.grad(3 * theirs, exact)
        for mine, w in zip(torch.autograd.grad(3 * ours, (z, weight, bias)), wanted):
            assert relative_error(mine, w) < tolerance


def test_the_three_ways_are_all_taken():
    assert rows_that_fit(70, 3000, 1 << 30) == 70
    assert rows_that_fit(70, 3000, 4 * 3000 * 40) == 35
    assert rows_that_fit(70, 3000, 1) == 0


def test_fused_with_weighted_rows_and_huge_logits():
    z, weight, bias, a, b, lam = random_case(40, 300, 24, torch.float64)
    counts = torch.rand(40, dtype=torch.float64)
    rows = instance_loss(200 * z @ weight.T + bias, a, b, lam, 0.1, reduction="none")
    assert rows.max() > 500
    ours = fused_instance_loss(200 * z, weight, bias, a, b, lam, 0.1, row_weight=counts, memory=1)
    assert torch.allclose(ours, counts @ rows)
    for mine, w in zip(
        torch.autograd.grad(ours, (z, weight, bias)), torch.autograd.grad(counts @ rows, (z, weight, bias))
    ):
        assert relative_error(mine, w) < 1e-9
    alone = fused_instance_loss(200 * z, weight, bias, a, b, lam, 0.1, reduction="none")
    assert torch.allclose(alone, rows)


def test_fused_under_bf16_autocast_is_within_two_percent():
    """bf16 keeps 8 bits: the loss to 2e-3, gradients to 2e-2 of their largest entry."""
    z, weight, bias, a, b, lam = random_case(64, 2040, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = fused_instance_loss(z, weight, bias, a, b, lam, 0.1)
    assert ours.dtype == torch.float32
    theirs = dense(z @ weight.T + bias, a, b, lam, 0.1)
    assert relative_error(ours.detach(), theirs.detach()) < 2e-3
    for mine, w in zip(torch.autograd.grad(ours, (z, weight, bias)), torch.autograd.grad(theirs, (z, weight, bias))):
        assert relative_error(mine, w) < 2e-2


def test_fused_under_fp16_autocast_keeps_the_gradient_of_a_softmax_over_many_classes():
    """Of a step of 1,024 images: a class's part of it, 1 / (1,024 N), is below fp16's smallest number."""
    z, weight, bias, a, b, lam = random_case(16, 60_000, 8, torch.float32)
    counts = torch.full((16,), 1 / 1024)
    with torch.autocast("cpu", torch.float16):
        ours = fused_instance_loss(z, weight, bias, a, b, lam, 0.1, row_weight=counts)
    theirs = counts @ instance_loss(z @ weight.T + bias, a, b, lam, 0.1, reduction="none")
    others = torch.ones(60_000, dtype=torch.bool).index_fill_(0, torch.cat([a, b]), False)
    (mine,), (wanted,) = torch.autograd.grad(ours, weight), torch.autograd.grad(theirs, weight)
    assert relative_error(mine[others], wanted[others]) < 2e-2
    assert relative_error(mine, wanted) < 2e-2


def test_the_gradients_memory_is_used_again_once_nobody_holds_it():
    torch.manual_seed(0)
    z, w, b = torch.randn(4, 8), torch.randn(100, 8, requires_grad=True), torch.zeros(100, requires_grad=True)
    idx = torch.arange(4)

    def step(scale):
        w.grad = None
        fused_instance_loss(scale * z, w, b, idx, idx, 1.0, 0.1).backward()
        return w.grad

    first = step(1.0)
    second = step(2.0)  # `first` is still held
    assert second.data_ptr() != first.data_ptr()
    assert not torch.equal(first, second)
    wanted, at = first.clone(), second.data_ptr()
    del first, second
    assert step(1.0).data_ptr() == at
    assert torch.equal(w.grad, wanted)
    fused_instance_loss(z, w, b, idx, idx, 1.0, 0.1).backward()  # accumulated
    torch.testing.assert_close(w.grad, 2 * wanted)


@pytest.mark.integration
def test_fused_never_holds_the_logits(tmp_path):
    """256 x 400,000 logits are 410 MB; the peak beyond weights and gradients stays near the bound of 64 MB."""
    code = """
import torch
from pathlib import Path
from idmm_fast.losses import fused_instance_loss
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024
torch.manual_seed(0)
z, w = torch.randn(256, 32, requires_grad=True), torch.randn(400_000, 32, requires_grad=True)
b = torch.zeros(400_000, requires_grad=True)
idx = torch.randint(0, 400_000, (256,))
fused_instance_loss(z[:2], w[:500], b[:500], idx[:2] % 500, idx[:2] % 500, 0.5, 0.1).backward()
w.grad = b.grad = None
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
fused_instance_loss(z, w, b, idx, idx.flip(0), 0.5, 0.1, memory=64 << 20).backward()
print(status("VmHWM") - before - 33 * 400_000 * 4 / 2**20)
"""
    used = float(run_forked(tmp_path, code).splitlines()[-1])
    assert used < 64 + 80, used


# --- sharded over processes


def run_sharded(world, folder):
    rendezvous = folder / f"rendezvous_{world}"
    processes = [ForkedScript(sharded_cases.__file__, rank, world, rendezvous, folder) for rank in range(world)]
    for process in processes:
        said = process.communicate(timeout=200)
        assert process.returncode == 0, said[-2000:]
    return [torch.load(folder / f"result_{world}_{r}.pt", weights_only=True) for r in range(world)]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """2 processes, then 4, which also load what the 2 wrote."""
    folder = tmp_path_factory.mktemp("sharded")
    return {world: run_sharded(world, folder) for world in (2, 4)}


@pytest.mark.integration
@pytest.mark.parametrize("total", [103, 5])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("memory", ["1073741824", "1000"])
def test_sharded_head_equals_one_process(worlds, world, memory, total):
    """Loss and all gradients to 1e-5, with unequal batches.

    103 classes are divided by nothing; of 5 classes one of 4 processes holds none.
    """
    z, weight, bias, a, b, lam = (
        v.requires_grad_() if v.is_floating_point() and k < 3 else v
        for k, v in enumerate(sharded_cases.data(total=total))
    )
    loss = dense(z @ weight.T + bias, a, b, lam, 0.1)
    d_z, d_w, d_b = torch.autograd.grad(loss, (z, weight, bias))
    key = memory if total == 103 else f"few {memory}"
    for (low, high), result in zip(sharded_cases.parts_of(world), worlds[world]):
        mine = result[key]
        assert relative_error(mine["loss"], loss.detach()) < 1e-5
        assert relative_error(mine["z"], d_z[low:high]) < 1e-5
        rows = slice(mine["first"], mine["first"] + mine["weight"].shape[0])
        if mine["weight"].numel():
            assert relative_error(mine["weight"], d_w[rows]) < 1e-5
            assert relative_error(mine["bias"], d_b[rows]) < 1e-5
    assert sum(r[key]["weight"].shape[0] for r in worlds[world]) == total


@pytest.mark.integration
def test_sampled_losses_agree_between_processes(worlds):
    for results in worlds.values():
        for other in results[1:]:
            assert torch.allclose(results[0]["sampled"], other["sampled"])
        assert results[0]["sampled"].std() > 0


def test_sampling_classes_is_unbiased_in_the_sum_and_its_logarithm_is_off_as_stated():
    """Over 3,000 samples at rate 0.05, by the sum and by its logarithm.

    The mean of exp(logsumexp) is within 4 standard errors of the full sum. The mean loss is below the full one by
    Var / (2 sum^2), within 4 standard errors and a third, for the terms beyond.
    """
    torch.manual_seed(0)
    head, full = ShardedHead(16, 400, sample_rate=0.05).double(), ShardedHead(16, 400).double()
    with torch.no_grad():
        head.weight.copy_(0.5 * torch.randn(400, 16))
        full.weight.copy_(head.weight)
    z, a = 0.5 * torch.randn(1, 16, dtype=torch.float64), torch.tensor([7])
    lam = torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        own = (z @ head.weight.T + head.bias)[0, 7]
        wanted = full.loss(z, a, a, lam, 0.0) + own
        logs = torch.tensor([head.loss(z, a, a, lam, 0.0) + own for _ in range(3000)])
    sums = logs.exp() / wanted.exp()
    assert abs(sums.mean() - 1) < 4 * sums.std() / math.sqrt(3000)
    bias = sums.var() / 2
    error = logs.std() / math.sqrt(3000)
    assert abs((wanted - logs.mean()) - bias) < 4 * error + bias / 3
    assert bias > 5 * error  # so that the test can tell


def test_sampled_label_smoothing_of_0_8_is_right_on_average():
    """What smoothing adds to a loss of the same sample, 0.8 (o_a - mean_c(o_c)): its mean, within 4 standard errors."""
    torch.manual_seed(0)
    head = ShardedHead(16, 400, sample_rate=0.2).double()
    torch.nn.init.normal_(head.weight)
    z, a, lam = torch.randn(1, 16, dtype=torch.float64), torch.tensor([7]), torch.ones(1, dtype=torch.float64)
    added = torch.empty(1000, dtype=torch.float64)
    with torch.no_grad():
        for seed in range(1000):
            torch.manual_seed(seed)
            plain = head.loss(z, a, a, lam, 0.0)
            torch.manual_seed(seed)
            added[seed] = head.loss(z, a, a, lam, 0.8) - plain
        logits = (z @ head.weight.T + head.bias)[0]
    assert added.std() > 0.01
    assert abs(added.mean() - 0.8 * (logits[7] - logits.mean())) < 4 * added.std() / math.sqrt(1000)


def test_sampled_gradients_reach_the_classes_of_the_batch():
    head = ShardedHead(16, 400, sample_rate=0.1)
    z, a, b = torch.randn(8, 16, requires_grad=True), torch.arange(8), torch.arange(8, 16)
    head.loss(z, a, b, torch.full((8,), 0.7), 0.1).backward()
    touched = head.weight.grad.abs().sum(1) > 0
    assert touched[:16].all()
    assert 16 + 20 < int(touched.sum()) < 16 + 60
    with pytest.raises(ValueError, match="sample_rate"):
        ShardedHead(16, 400, sample_rate=0)


# --- from the probabilities to their square roots


def test_sqrt_kl_is_the_divergence_from_the_square_roots():
    """By torch's kl_div; its gradient is half that of the negative entropy, since the square roots are held fixed."""
    logits = (3 * torch.randn(6, 50, dtype=torch.float64)).requires_grad_()
    p = logits.softmax(1)
    u = normalize(p.sqrt(), p=1, dim=1)
    ours = sqrt_kl_loss(logits)
    assert torch.isclose(ours, kl_div(u.log(), p, reduction="batchmean"))
    wanted = torch.autograd.grad(0.5 * (p * p.log()).sum(1).mean(), logits)[0]
    assert torch.allclose(torch.autograd.grad(ours, logits)[0], wanted)
    assert sqrt_kl_loss(torch.zeros(3, 7, dtype=torch.bfloat16)) == 0  # uniform; and in float32
    assert sqrt_kl_loss(torch.zeros(3, 7, dtype=torch.bfloat16)).dtype == torch.float32


# --- the theory (docs/internals/loss.md)


def test_with_the_other_crops_features_as_weights_it_is_the_contrastive_loss():
    """w_j = z_j', no bias: NT-Xent in its one-sided form at temperature 1, alignment plus uniformity."""
    g = torch.Generator().manual_seed(0)
    z, other = (normalize(torch.randn(32, 16, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    idx = torch.arange(32)
    ours = instance_loss(z @ other.T, idx, idx, 1.0, 0.0)
    one_sided = -torch.stack(
        [log_softmax(torch.stack([z[i] @ other[j] for j in range(32)]), 0)[i] for i in range(32)]
    ).mean()
    assert abs(ours - one_sided) < 1e-12
    alignment, uniformity = -(z * other).sum(1).mean(), torch.logsumexp(z @ other.T, 1).mean()
    assert abs(ours - (alignment + uniformity)) < 1e-12


@pytest.mark.parametrize("sizes", [[6] * 5, [1, 4, 9, 2, 14]])
def test_with_weights_tied_inside_clusters_it_is_deep_clustering(sizes):
    """Equal clusters of n: L = L_cluster + N log n. Unequal ones: cluster logits shift by log n_k, L by sum log n."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.tensor(sizes)
    cluster = torch.repeat_interleave(torch.arange(5), sizes)
    total = int(sizes.sum())
    z, centres = (
        torch.randn(total, 8, generator=g, dtype=torch.float64),
        torch.randn(5, 8, generator=g, dtype=torch.float64),
    )
    idx = torch.arange(total)
    ours = instance_loss(z @ centres[cluster].T, idx, idx, 1.0, 0.0, reduction="none").sum()
    logs = sizes.double().log()
    clustered = cross_entropy(z @ centres.T + logs, cluster, reduction="sum")
    assert torch.allclose(ours, clustered + logs[cluster].sum())
    if (sizes == sizes[0]).all():
        assert torch.allclose(
            ours, cross_entropy(z @ centres.T, cluster, reduction="sum") + total * math.log(int(sizes[0]))
        )


def test_gradients_to_the_weights_are_the_closed_forms():
    """dL_i/dw_k = (p_k - target_k) z_i.

    Nearly nothing for unrelated classes without label smoothing, -(eps / C) z_i with it, a full update for CutMix's
    partner.
    """
    classes, eps, lam = 5000, 0.1, 0.6
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, 16, generator=g, dtype=torch.float64)
    weight = (0.02 * torch.randn(classes, 16, generator=g, dtype=torch.float64)).requires_grad_()
    a, b = torch.tensor([3]), torch.tensor([4])
    for e in (0.0, eps):
        loss = instance_loss(z @ weight.T, a, b, lam, e)
        (d_w,) = torch.autograd.grad(loss, weight)
        p = torch.softmax(z @ weight.detach().T, 1)[0]
        target = torch.full((classes,), e / classes, dtype=torch.float64)
        target[3] += (1 - e) * lam
        target[4] += (1 - e) * (1 - lam)
        assert np.allclose(d_w, (p - target)[:, None] * z, atol=1e-12)
