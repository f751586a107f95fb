"""CpuTimeHook: what a step costs the processor, whoever else is at work."""

import time
from types import SimpleNamespace

from kd_detr_mmdet.hooks import CpuTimeHook


class Hub:
    def __init__(self):
        self.logged = []

    def update_scalar(self, name, value):
        self.logged.append((name, value))


def test_waiting_costs_nothing_and_evaluation_is_left_out(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    runner, hook = SimpleNamespace(message_hub=Hub()), CpuTimeHook()
    hook.before_train_epoch(runner)
    for seconds in (0.5, 0.25):
        now[0] += seconds
        hook.after_train_iter(runner)
    now[0] += 100  # an evaluation between two steps
    hook.after_val_epoch(runner)
    now[0] += 0.125
    hook.after_train_iter(runner)
    assert runner.message_hub.logged == [("train/cpu_time", s) for s in (0.5, 0.25, 0.125)]
