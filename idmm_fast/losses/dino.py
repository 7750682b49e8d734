"""DINO's loss: the student's output for one crop against the teacher's for another (Caron et al., arXiv 2104.14294)."""

from __future__ import annotations

import torch


def dino_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    center: torch.Tensor,
    crops: int,
    teacher_crops: int,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> torch.Tensor:
    """The mean over the images and all pairs of a crop t of the teacher and another crop s of -sum_k p_t[k] log q_s[k].

    There p = softmax((teacher - center) / teacher_temperature) and q = softmax(student / student_temperature); the
    paper's equations 1 to 4.

    Args:
        student: float (crops * B, K), rows crop after crop.
        teacher: float (teacher_crops * B, K), of the first of these crops, without gradient.
        center: float (K,).
        crops: crops of an image that the student sees.
        teacher_crops: how many of them the teacher sees.
        student_temperature: above 0.
        teacher_temperature: above 0.

    Returns:
        float32, scalar.
    """
    p = ((teacher.float() - center) / teacher_temperature).softmax(1).view(teacher_crops, -1, teacher.shape[1])
    q = (student.float() / student_temperature).log_softmax(1).view(crops, -1, student.shape[1])
    all_pairs = (p.sum(0) * q.sum(0)).sum(1)
    same_crop = (p * q[:teacher_crops]).sum((0, 2))
    return -(all_pairs - same_crop).mean() / (teacher_crops * (crops - 1))


@torch.no_grad()
def update_center(center: torch.Tensor, output_sum: torch.Tensor, count: torch.Tensor, momentum: float) -> torch.Tensor:
    """The center after a batch: momentum * center + (1 - momentum) * output_sum / count (equation 4).

    Args:
        center: float (K,).
        output_sum: float (K,), the sum of the teacher's outputs.
        count: how many outputs that were.
        momentum: 0..1.

    Returns:
        float (K,). The center as it was where the mean of the batch is not finite.
    """
    mean = output_sum / count
    return torch.where(torch.isfinite(mean).all(), momentum * center + (1 - momentum) * mean, center)
