# For studies: options that put configs of other data to the people of COCO, the images in
# data/coco-mini (docs/studies/README.md).
_data = "data/coco-mini/"
options = {"val_evaluator.ann_file": f"{_data}annotations/instances_val.json"}
for _split in ("train", "val"):
    _dataset = f"{_split}_dataloader.dataset"
    options[f"{_dataset}.data_root"] = _data
    options[f"{_dataset}.metainfo.classes"] = ("person",)
    options[f"{_dataset}.ann_file"] = f"annotations/instances_{_split}.json"
    options[f"{_dataset}.data_prefix.img"] = f"images/{_split}/"
