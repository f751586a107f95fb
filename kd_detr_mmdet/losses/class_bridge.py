"""How C independent sigmoid scores teach a softmax over C + 1: nobody has published how."""

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_BRIDGES = ("posterior", "binary", "foreground")


def bridged_divergence(student: Tensor, teacher: Tensor, bridge: str) -> Tensor:
    """Divergence of a student that has a background class from a teacher that has none.

    Args:
        student: Logits of one softmax, shape (..., C + 1), the background last.
        teacher: Logits of C sigmoids, shape (..., C), of no gradient.
        bridge: ``'posterior'``: the teacher's scores p become a distribution, the background with
            1 - max p and each class with its share of max p; KL to the student's softmax.
            ``'binary'``: the student's probability of each class against the teacher's, as C
            yes-or-no questions; the sum of their Bernoulli KLs. ``'foreground'``: which class, if
            it is an object: KL between both distributions over the C classes alone, which leaves
            the background to the detection loss.

    Returns:
        Tensor: Shape (...), at least 0.
    """
    # 1e4 is 0 or 1 to float32 as well, and keeps 0 * inf out.
    scores = teacher.sigmoid()
    if bridge == "binary":
        log_yes = student.log_softmax(-1)
        # log(1 - p) of a class is that of all others together.
        log_no = torch.stack(
            [
                torch.cat([log_yes[..., :c], log_yes[..., c + 1 :]], -1).logsumexp(-1)
                for c in range(teacher.size(-1))
            ],
            -1,
        )
        yes = scores * (F.logsigmoid(teacher) - log_yes[..., :-1])
        no = (1 - scores) * (F.logsigmoid(-teacher) - log_no)
        return (yes + no).sum(-1)
    shares = F.logsigmoid(teacher).softmax(-1)  # p / sum p
    if bridge == "foreground":
        return F.kl_div(student[..., :-1].log_softmax(-1), shares, reduction="none").sum(-1)
    foreground = scores.amax(-1, keepdim=True)
    target = torch.cat([shares * foreground, 1 - foreground], -1)
    return F.kl_div(student.log_softmax(-1), target, reduction="none").sum(-1)
