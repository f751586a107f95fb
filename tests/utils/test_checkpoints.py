"""Checkpoints are data: what MMEngine writes is read, what would run code is not."""

import collections
import os

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader

from kd_detr_mmdet.utils.checkpoints import (
    let_mmengine_read_anything,
    let_mmengine_read_data_only,
    read_checkpoint,
)
from kd_detr_mmdet.utils.errors import ConfigError

WEIGHTS = dict(weight=torch.ones(2))


class Hostile:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def save(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "it.pth")
        return str(tmp_path / "it.pth")

    return save


def refused(*args, **kwargs):
    with pytest.raises(ConfigError) as error:
        read_checkpoint(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("where", ["beside the weights", "among them", "instead of them"])
def test_a_hostile_file_is_not_run(save, tmp_path, where):
    trap = Hostile(str(tmp_path / "sprung"))
    path = save(
        {
            "beside the weights": dict(state_dict=WEIGHTS, meta=trap),
            "among them": dict(state_dict=dict(WEIGHTS, trap=trap)),
            "instead of them": trap,
        }[where]
    )
    message = refused(path, "teacher.checkpoint")
    assert not (tmp_path / "sprung").exists()
    assert "is more than data" in message
    assert "mkdir" in message
    assert "trust=True" in message


def test_trust_runs_it(save, tmp_path):
    path = save(dict(state_dict=WEIGHTS, meta=Hostile(str(tmp_path / "sprung"))))
    read_checkpoint(path, "checkpoint", trust=True)
    assert (tmp_path / "sprung").exists()  # so the trap of the other tests works


def test_getattr_reaches_nothing_but_history_buffers(save, tmp_path):
    class Reaching:
        def __reduce__(self):
            return getattr, (torch.nn.Module, "__init__")

    message = refused(save(dict(state_dict=WEIGHTS, meta=Reaching())), "checkpoint")
    assert "is more than data" in message and "getattr" in message


def test_all_that_mmengine_writes(save):
    hub = MessageHub.get_instance("test_checkpoints")
    hub.update_scalar("train/loss", np.float32(1.5))
    hub.update_scalar("train/loss", torch.tensor(2.5))
    hub.update_info("iter", 7)
    written = dict(
        state_dict=collections.OrderedDict(WEIGHTS),
        message_hub=hub.state_dict(),
        meta=dict(seed=np.int64(3), classes=("a",), counts=collections.Counter("ab")),
        random_state=dict(numpy=np.random.get_state(), torch=torch.get_rng_state()),
        arrays=[np.zeros(2, dtype) for dtype in (np.float64, np.int32, bool)],
    )
    content = read_checkpoint(save(written), "checkpoint")
    buffer = content["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == 2.0
    assert content["meta"]["seed"] == 3
    assert (content["random_state"]["numpy"][1] == written["random_state"]["numpy"][1]).all()


def test_a_url_of_a_file(save, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path = save(dict(state_dict=WEIGHTS))
    content = read_checkpoint(f"file://{path}", "checkpoint")
    assert torch.equal(content["state_dict"]["weight"], WEIGHTS["weight"])


def test_a_download_whose_hash_is_wrong(save, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    named = tmp_path / "weights-0123abcd.pth"
    os.rename(save(dict(state_dict=WEIGHTS)), named)
    assert "invalid hash value" in refused(f"file://{named}", "checkpoint")


@pytest.mark.parametrize("content", [3, [WEIGHTS], dict(state_dict=dict(weight="none"))])
def test_a_file_without_weights(save, content):
    assert "holds no weights" in refused(save(content), "checkpoint")


@pytest.fixture
def data_only(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, "_schemes", CheckpointLoader._schemes.copy())
    let_mmengine_read_data_only()


def test_mmengine_reads_data(data_only, save):
    path = save(dict(state_dict=WEIGHTS, meta=dict(seed=np.int64(3))))
    for name in (path, f"file://{path}"):
        content = CheckpointLoader.load_checkpoint(name, map_location="meta")
        assert content["meta"]["seed"] == 3
        assert content["state_dict"]["weight"].is_meta


@pytest.mark.parametrize(
    "name, end",
    [
        ("https://example.org/resnet.pth", "resnet.pth"),
        ("torchvision://resnet50", "resnet50-0676ba61.pth"),
        ("modelzoo://resnet50", "resnet50-0676ba61.pth"),
        ("open-mmlab://detectron2/resnet50_caffe", "resnet50_msra-5891d200.pth"),
    ],
)
def test_mmengine_reads_urls_and_names_as_data(data_only, monkeypatch, name, end):
    asked = []

    def download(source, **options):
        asked.append((source, options["weights_only"]))
        return WEIGHTS

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    assert CheckpointLoader.load_checkpoint(name) is WEIGHTS
    assert len(asked) == 1 and asked[0][1]
    assert asked[0][0].startswith("https://") and asked[0][0].endswith("/" + end)


@pytest.mark.parametrize("name", ["mmcls://resnet50", "s3://a/b.pth", "pavi://a", "x:petrel://b"])
def test_what_cannot_be_read_as_data_is_refused(data_only, name):
    with pytest.raises(ConfigError, match="--trust"):
        CheckpointLoader.load_checkpoint(name)


def test_an_unknown_name(data_only):
    with pytest.raises(ConfigError, match="no weights of that name"):
        CheckpointLoader.load_checkpoint("torchvision://none")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_mmengine_reads_anything(data_only, save, monkeypatch, tmp_path, scheme):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path = save(dict(state_dict=WEIGHTS, meta=Hostile(str(tmp_path / "sprung"))))
    let_mmengine_read_anything()
    content = CheckpointLoader.load_checkpoint(scheme + path, map_location="meta")
    assert content["state_dict"]["weight"].is_meta
    assert (tmp_path / "sprung").exists()


def test_every_loader_of_mmengine_is_replaced(monkeypatch):
    before = CheckpointLoader._schemes
    monkeypatch.setattr(CheckpointLoader, "_schemes", before.copy())
    let_mmengine_read_data_only()
    assert CheckpointLoader._schemes.keys() == before.keys()
    assert not set(CheckpointLoader._schemes.values()) & set(before.values())
