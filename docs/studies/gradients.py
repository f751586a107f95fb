"""What each term of the distillation does to a student: its gradient beside its own losses'.

python docs/studies/gradients.py CONFIG STUDENT_CHECKPOINT TEACHER_CHECKPOINT BATCHES

CONFIG is a distillation's. For each set of points and each term, at weight 1: its value, the norm
of its gradient as a share of that of the student's own losses (median over batches), and the cosine
between both gradients, summed over the batches: above 0 where the term helps the student's task.
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed

from kd_detr_mmdet.detectors.teacher import load_strictly

OWN = "own"  # the student's detection losses together


def by_term(losses: dict) -> dict[str, torch.Tensor]:
    """Sums over layers: the student's own losses, and each term of each set of points."""
    sums: dict[str, torch.Tensor] = {}
    for name, value in losses.items():
        if "loss" not in name:
            continue  # Faster R-CNN's accuracy
        term = name.split("kd_loss_")[1] if "kd_loss_" in name else OWN
        value = sum(value) if isinstance(value, list) else value
        sums[term] = sums.get(term, 0) + value
    return sums


def main(config: str, student: str, teacher: str, batches: int) -> None:
    cfg = Config.fromfile(config)
    cfg.model.teacher.checkpoint = teacher
    cfg.train_dataloader.sampler.shuffle = False
    weights = dict(cls_weight=1.0, l1_weight=1.0, giou_weight=1.0)
    print("| class term | | value | gradient's norm | cosine |\n|---|---|---|---|---|")
    for class_term in ("bernoulli", "softmax"):
        set_random_seed(0)
        cfg.model.distill_loss = dict(cfg.model.get("distill_loss", {}), **weights)
        cfg.model.distill_loss.class_term = class_term
        model = MODELS.build(cfg.model)
        if class_term == "softmax" and model.student_family.has_background:
            break  # it has a class bridge instead
        load_strictly(model.student, student, what="STUDENT_CHECKPOINT")
        parameters = [p for p in model.parameters() if p.requires_grad]
        total: dict[str, torch.Tensor] = {}
        values: dict[str, list] = {}
        norms: dict[str, list] = {}
        for number, data in enumerate(Runner.build_dataloader(cfg.train_dataloader)):
            if number == batches:
                break
            losses = model.train()(**model.data_preprocessor(data, True), mode="loss")
            for term, value in by_term(losses).items():
                if class_term == "softmax" and term != OWN and not term.endswith("_cls"):
                    continue  # boxes do as before
                found = torch.autograd.grad(
                    value, parameters, retain_graph=True, materialize_grads=True, allow_unused=True
                )
                gradient = torch.cat([part.flatten() for part in found])
                total[term] = total.get(term, 0) + gradient
                values.setdefault(term, []).append(value.item())
                norms.setdefault(term, []).append(gradient.norm().item())
        for term in total:
            if class_term == "softmax" and term == OWN:
                continue  # as before
            ratio = statistics.median(a / b for a, b in zip(norms[term], norms[OWN]))
            cosine = torch.cosine_similarity(total[term], total[OWN], dim=0).item()
            value = statistics.mean(values[term])
            print(f"| {class_term} | {term} | {value:.3f} | {ratio:.3f} | {cosine:+.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_default_scope("mmdet")
    *paths, batches = sys.argv[1:]
    main(*paths, int(batches))
