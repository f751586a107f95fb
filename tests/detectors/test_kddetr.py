"""KDDETR: the student's own training untouched, the teacher's answers added."""

import copy

import torch
from conftest import build, dino_config


def losses_of(model, data, seed=0):
    torch.manual_seed(seed)
    return model.train()(**data, mode="loss")


def test_own_losses_are_bit_identical_to_plain_mmdet(kd_config, batch):
    kd, plain = build(kd_config()), build(dino_config())
    data = batch(plain)
    plain_losses = losses_of(plain, copy.deepcopy(data))
    kd_losses = losses_of(kd, data)
    assert len(plain_losses) == 15
    for name, value in plain_losses.items():
        assert torch.equal(kd_losses[name], value), name
