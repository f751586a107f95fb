"""Figures of docs/cost.md, 'Lowering the teacher's share': what its options save, and change.

python docs/studies/teacher_share.py speed CONFIG WIDTH HEIGHT BATCH_SIZE ROUNDS
python docs/studies/teacher_share.py targets CONFIG CHECKPOINT
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from kd_detr_mmdet.detectors.teacher_at_work import TeacherAtWork
from kd_detr_mmdet.utils.benchmark import Benchmark

OPTIONS = {
    "none": {},
    "channels_last=True": dict(channels_last=True),
    "dtype='bfloat16'": dict(dtype="bfloat16"),
    "dtype='bfloat16', channels_last=True": dict(dtype="bfloat16", channels_last=True),
    "dtype='float16'": dict(dtype="float16"),
    "scale=0.75": dict(scale=0.75),
    "scale=0.5": dict(scale=0.5),
}
SLOW = "dtype='float16'"  # on a CPU: measured once


def processor_seconds(work: Callable[[], object]) -> float:
    """Of one thread; other work on the machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speed(config: str, width: int, height: int, batch_size: int, rounds: int) -> None:
    """Plain step, teacher's look and distilled step with each option, in turn."""
    cfg = Config.fromfile(config)
    cfg.model.teacher.checkpoint = None  # random weights: speed hardly depends on them
    bench = Benchmark(cfg, torch.device("cpu"))
    model, batch = bench.model, next(bench.generated((width, height), batch_size))
    cases = [(name, option, 1) for name, option in OPTIONS.items()] + [("interval=2", {}, 2)]
    times: dict[str, list[tuple]] = {}
    for number in range(rounds + 1):  # the first does not count
        for name, option, interval in cases:
            if name == SLOW and number > 1:
                continue
            model.teacher.to(memory_format=torch.contiguous_format)
            model.teacher_at_work = TeacherAtWork(model.teacher, **option)
            model.interval = interval
            plain = processor_seconds(lambda: bench._step(bench.plain, batch))
            look = processor_seconds(lambda: model.teacher_look(*batch.values())) / interval
            kd = sum(
                processor_seconds(lambda: bench._step(bench.kd, batch)) for _ in range(interval)
            )
            if number:
                times.setdefault(name, []).append((plain, look, kd / interval))
    print("| option | student's step, ms | teacher's forward, ms | distilled step, ms | ratio |")
    for name, rows in times.items():
        plain, look, kd = (1000 * statistics.median(column) for column in zip(*rows))
        ratio = statistics.median(row[2] / row[0] for row in rows)
        print(f"| {name} | {plain:.0f} | {look:.0f} | {kd:.0f} | {ratio:.2f} |", flush=True)


def targets(config: str, checkpoint: str) -> None:
    """How far each option moves the teacher's answers at general points of validation images."""
    cfg = Config.fromfile(config)
    teacher = {**cfg.model.teacher, "checkpoint": checkpoint}
    models = [
        MODELS.build({**cfg.model, "teacher": {**teacher, **option}}).eval()
        for option in OPTIONS.values()
    ]
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    differences = torch.zeros(len(models), 2)
    for index in range(len(dataset)):
        batch = models[0].data_preprocessor(pseudo_collate([dataset[index]]), False)
        points, answers = models[0].point_generator.general(1, (index,)), []
        for model in models:
            record = model.teacher_look(batch["inputs"], batch["data_samples"])
            with model.teacher_at_work.answering():
                answers.append(model.teacher_family.answer(record, points))
        for row, answer in zip(differences, answers):
            for column, (said, exact) in enumerate(zip(answer[:2], answers[0][:2])):
                row[column] += (said[-1] - exact[-1]).abs().mean() / len(dataset)
    print("| option | logits | boxes |")
    for name, (logits, boxes) in zip(OPTIONS, differences.tolist()):
        print(f"| {name} | {logits:.4f} | {boxes:.5f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_default_scope("mmdet")
    what, config, *arguments = sys.argv[1:]
    if what == "speed":
        speed(config, *map(int, arguments))
    else:
        targets(config, *arguments)
