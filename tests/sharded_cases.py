"""What several processes do in losses/test_loss.py: python sharded_cases.py RANK WORLD RENDEZVOUS FOLDER"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from idmm_fast.losses import ShardedHead

TOTAL, D, ROWS = 103, 12, 24  # 103 divides by nothing
FEW = 5  # classes of which the last of four processes holds none


def data(dtype=torch.float64, total=TOTAL):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(ROWS, D, dtype=dtype, generator=generator)
    weight, bias = (
        torch.randn(total, D, dtype=dtype, generator=generator),
        torch.randn(total, dtype=dtype, generator=generator),
    )
    a, b = torch.randint(0, total, (ROWS,), generator=generator), torch.randint(0, total, (ROWS,), generator=generator)
    a[:4] = b[:4]
    return z, weight, bias, a, b, torch.rand(ROWS, dtype=dtype, generator=generator)


def parts_of(world):
    """Rows of each process: uneven on purpose."""
    edges = [0, *[round(ROWS * (r + 1) / world) - (1 if r + 1 < world else 0) for r in range(world)]]
    return list(zip(edges[:-1], edges[1:]))


def gradients(low, high, total, eps, memory, sample_rate=1.0):
    """(the head, what it makes of this process's rows)."""
    z, weight, bias, a, b, lam = data(total=total)
    head = ShardedHead(D, total, workspace_bytes=memory, sample_rate=sample_rate).double()
    with torch.no_grad():
        head.weight.copy_(head.local_shard(weight))
        head.bias.copy_(head.local_shard(bias))
    mine = z[low:high].clone().requires_grad_()
    loss = head.loss(mine, a[low:high], b[low:high], lam[low:high], eps)
    loss.backward()
    return head, {
        "loss": loss.detach(),
        "z": mine.grad,
        "weight": head.weight.grad,
        "bias": head.bias.grad,
        "first": head.first,
    }


def check_slices(head, world, folder):
    """Write the gathered head. From it, and from what other numbers of processes wrote, each takes the slice it has."""
    full = {name: head.gather_full(getattr(head, name).detach()) for name in ("weight", "bias")}
    if dist.get_rank() == 0:
        torch.save(full, Path(folder) / f"head_{head.total}_{world}.pt")
    dist.barrier()
    for saved in sorted(Path(folder).glob(f"head_{head.total}_*.pt")):
        for name, rows in torch.load(saved, weights_only=True).items():
            assert torch.equal(head.local_shard(rows), getattr(head, name)), (saved, name)


def main(rank, world, rendezvous, folder):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    z, _, _, a, b, lam = data()
    low, high = parts_of(world)[rank]
    result = {}
    for memory in (1 << 30, 1000):
        few, result[f"few {memory}"] = gradients(low, high, FEW, 0.1, memory)
        head, result[f"{memory}"] = gradients(low, high, TOTAL, 0.1, memory)
    assert gradients(low, high, FEW, 0.1, 1000, sample_rate=0.5)[1]["loss"].isfinite()
    check_slices(few, world, folder)
    check_slices(head, world, folder)
    sampled = ShardedHead(D, TOTAL, sample_rate=0.5).double()
    with torch.no_grad():
        sampled.weight.copy_(head.weight)
    values = [sampled.loss(z[low:high], a[low:high], b[low:high], lam[low:high], 0.1).item() for _ in range(20)]
    result["sampled"] = torch.tensor(values)
    torch.save(result, Path(folder) / f"result_{world}_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
