"""DINO's loss: the student's guess at one view against the teacher's at another."""

import torch


def dino_loss(student, teacher, center, views, teacher_views, student_temperature=0.1, teacher_temperature=0.04):
    """Mean over the images and over all pairs of a teacher's view t and another view s of  -sum_k p_t[k] log q_s[k],  with
    p = softmax((teacher - center) / teacher_temperature), q = softmax(student / student_temperature) (Caron et al., arXiv 2104.14294, equations 1 to 4).

    student: float (views * B, K), rows view after view; teacher: float (teacher_views * B, K), for the first of these views, without
    gradient; center: float (K,). Reduced in float32.
    """
    p = ((teacher.float() - center) / teacher_temperature).softmax(1).view(teacher_views, -1, teacher.shape[1])
    q = (student.float() / student_temperature).log_softmax(1).view(views, -1, student.shape[1])
    all_pairs = (p.sum(0) * q.sum(0)).sum(1)
    same_view = (p * q[:teacher_views]).sum((0, 2))
    return -(all_pairs - same_view).mean() / (teacher_views * (views - 1))


@torch.no_grad()
def moved(center, rows, total, momentum):
    """The centre after a batch: momentum * center + (1 - momentum) * rows / total, unless something in it is not finite. rows: (K,), the sum of the
    teacher's outputs; total: how many they were."""
    batch = rows / total
    return torch.where(torch.isfinite(batch).all(), momentum * center + (1 - momentum) * batch, center)
