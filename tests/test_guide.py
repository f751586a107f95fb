"""docs/guide.md: every block of it is run, in its order, as a reader would copy it."""

import ast
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import ROOT, needs_dino_widths
from preloaded_python import preloaded_python

GUIDE = ROOT / "docs/guide.md"
TEXT = GUIDE.read_text()
# What makes the guide's runs short. Each must be in the guide.
SHORTER = {
    "dict(train=400, val=100)": "dict(train=16, val=8)",
    "max_epochs = 24": "max_epochs = 1",
    "epoch_24.pth": "epoch_1.pth",
    "score >= 0.3": "score >= 0",  # of what has hardly been trained
    "--rounds 5": "--rounds 1",
    "--steps 5": "--steps 1",
    "--steps 2": "--steps 1",
}


@dataclass
class Block:
    """A fenced block: its language, its text and the line of the guide where it begins."""

    language: str
    text: str
    line: int

    @property
    def file(self):
        """The name in its first line, of a block that is a file."""
        found = re.match(r"# (\S+\.py)\n", self.text)
        return found[1] if found else None


def blocks_of(text):
    """All fenced blocks.

    Raises:
        ValueError: For a block that is not written in a way that is certain to be run.
    """
    found, inside = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if not re.match(r"\s*(```|~~~)", line):
            if inside:
                inside.text += line + "\n"
        elif inside:
            if line != "```":
                raise ValueError(f"line {number}: a block within a block")
            found.append(inside)
            inside = None
        else:
            if line not in ("```bash", "```python", "```text"):
                raise ValueError(f"line {number}: {line!r} is none of bash, python and text")
            inside = Block(line[3:], "", number)
    if inside:
        raise ValueError(f"line {inside.line}: the block has no end")
    for block in found:
        if block.language == "python" and not block.file:
            raise ValueError(f"line {block.line}: the first line must name the file: # path/x.py")
    return found


BLOCKS = blocks_of(TEXT)


class Reader:
    """Somebody who works through the guide in a copy of the repository."""

    def __init__(self, folder, python):
        self.folder, self.python = folder, python
        self.done, self.failed = 0, None
        self.output = {}  # of each bash block, by its line
        for name in ("configs", "tools"):
            ignore = shutil.ignore_patterns("__pycache__", "mine")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        for name in ("kd_detr_mmdet", "docs"):
            (folder / name).symlink_to(ROOT / name)

    def read(self, number):
        """Do what blocks up to this one say, as far as it is not done."""
        if self.failed:
            pytest.fail(f"the block at line {self.failed.line} failed before")
        while self.done <= number:
            block = BLOCKS[self.done]
            self.failed = block
            self._do(block)
            self.failed = None
            self.done += 1

    def _do(self, block):
        text = block.text
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        if block.language == "bash":
            self.output[block.line] = self.bash(text)
        elif block.language == "python":
            path = self.folder / block.file
            assert not path.exists(), f"line {block.line}: {block.file} is written twice"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def bash(self, text):
        """Run this, and return what it prints; the first line that fails is the last."""
        env = {
            **os.environ,
            "PATH": f"{self.python}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            # Without a network nothing can be downloaded unnoticed.
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def printed_by(self, command):
        """What the bash block printed that holds this command."""
        (block,) = (b for b in BLOCKS if b.language == "bash" and command in b.text)
        return self.output[block.line]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    # A socket's address has room for a hundred characters.
    with tempfile.TemporaryDirectory() as short:
        opened = folder / "opened.txt"
        repository = folder / "repository"
        repository.mkdir()
        with preloaded_python(Path(short, "bin"), opened) as python:
            reader = Reader(repository, python)
            reader.opened = opened
            yield reader


@pytest.fixture
def read(reader):
    """The reader at the end of the guide."""
    reader.read(len(BLOCKS) - 1)
    return reader


@needs_dino_widths
@pytest.mark.parametrize(
    "number",
    [number for number, block in enumerate(BLOCKS) if block.language != "text"],
    ids=lambda number: f"line-{BLOCKS[number].line}-{BLOCKS[number].language}",
)
def test_a_block_does_what_it_says(reader, number):
    reader.read(number)


@needs_dino_widths
def test_every_file_of_the_guide_was_used(read):
    opened = set(read.opened.read_text().splitlines())
    for block in BLOCKS:
        if block.file:
            assert str(read.folder / block.file) in opened, f"nothing reads {block.file}"


@needs_dino_widths
def test_what_came_out(read):
    assert "24 images read, 0 with problems" in read.printed_by("check_data.py")
    assert re.search(
        r"DINO of work_dirs/teacher/epoch_1.pth\n.*\nAP ", read.printed_by("--steps 5")
    )
    student, distilled = (
        torch.load(read.folder / f"work_dirs/{name}/epoch_1.pth", weights_only=False)["state_dict"]
        for name in ("student", "distilled")
    )
    assert student.keys() == distilled.keys()
    assert "coco/bbox_mAP: " in read.printed_by("tools/test.py")
    table = read.printed_by("tools/compare.py")
    models = re.findall(r"^\| (\w+)(?: \(teacher\))? \| \d", table, re.M)
    assert models == ["student", "teacher", "distilled"]
    assert len([*read.folder.glob("deploy/student-*.onnx")]) == 1
    detections = read.printed_by("detect.py").splitlines()
    assert len(detections) == 30
    assert all(
        re.fullmatch(r"(disc|square|triangle|ring) 0\.\d\d( -?\d+){4}", d) for d in detections
    )
    assert "classes, those that the teacher knows: ring, disc" in read.printed_by("_rings.py")
    assert (read.folder / "work_dirs/small_points.png").is_file()
    assert "kd_loss_specific_cls: " in read.printed_by("distilled_logits.py")


OWN_PARTS = """
import torch
from kd_detr_mmdet.points import Answer, DistillPoints
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
init_default_scope("mmdet")
models = []
for name in ("ranked", "small_points", "logits"):
    models.append(MODELS.build(Config.fromfile(f"configs/mine/distilled_{name}.py").model))
ranked, points, logits = models
assert type(ranked.student_family).__name__ == "RankedDINOFamily"
assert type(ranked.teacher_family).__name__ == "DINOFamily"
sides = points.point_generator(DistillPoints(torch.rand(2, 5, 4)), (0, 0))["general"].boxes[..., 2:]
assert 0.15 < sides.max() <= 0.2
boxes = torch.rand(1, 1, 3, 4)
one, two = Answer(torch.ones(1, 1, 3, 4), boxes), Answer(torch.full((1, 1, 3, 4), 3.0), boxes)
assert logits.distill_loss(one, two, "general")["kd_raw_general_cls"] == 4 * 2**2
print("as described")
"""


@needs_dino_widths
def test_parts_of_ones_own_are_what_the_guide_says(read):
    assert read.bash(f"python -c '{OWN_PARTS}'").endswith("as described\n")


REAL_MODELS = r"""
from pathlib import Path
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
init_default_scope("mmdet")
mine, real = Path("configs/mine"), Path("configs/real")
real.mkdir()
student = (mine / "student.py").read_text().split("train_cfg = ")[0].replace("max_epochs = 1", "")
base = "../_base_/tiny_dino.py", "../dino/dino-4scale_r18_8xb2-12e_coco.py"
(real / "student.py").write_text(student.replace(*base))
custom = Path("configs/custom/README.md").read_text().split("```python\n")[1].split("```")[0]
(real / "teacher.py").write_text("_base_ = \"./student.py\"\n" + custom)
(real / "distilled.py").write_text((mine / "distilled.py").read_text())
cfg = Config.fromfile(real / "distilled.py")
assert cfg.train_cfg.max_epochs == 12 and cfg.param_scheduler[0].milestones == [11]
cfg.model.teacher.checkpoint = None
model = MODELS.build(cfg.model)
print(model.student.backbone.depth, model.teacher.backbone.depth)
"""


@needs_dino_widths
def test_real_models_are_the_changes_that_the_guide_names(read):
    assert read.bash(f"python -c '{REAL_MODELS}'").endswith("\n18 50\n")


# --- what is not run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```\nls\n```\n", "line 1: '```' is none of bash, python and text"),
        ("```console\n$ ls\n```\n", "is none of"),
        ("  ```bash\n  ls\n  ```\n", "is none of"),
        ("~~~bash\nls\n~~~\n", "is none of"),
        ("```python\nprint(1)\n```\n", "line 1: the first line must name the file"),
        ("```bash\nls\n", "line 1: the block has no end"),
    ],
)
def test_a_block_that_would_not_be_run_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        blocks_of(text)


def test_text_blocks_hold_no_commands():
    for block in BLOCKS:
        if block.language == "text":
            assert not re.search(r"^\s*(\$|python|pip|import|from) ", block.text, re.M), block


def test_what_is_shortened_is_in_the_guide():
    for long in SHORTER:
        assert any(long in block.text for block in BLOCKS), long


def test_the_program_is_that_of_the_other_page():
    (program,) = (block.text for block in BLOCKS if block.file == "detect.py")
    assert program.removeprefix("# detect.py\n") in (ROOT / "docs/deploy.md").read_text()


def anchors(path):
    """The names by which a page's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert len(links) > 20
    for link in links:
        path, _, anchor = link.partition("#")
        target = (GUIDE.parent / path).resolve() if path else GUIDE
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def strings_of_the_source():
    """Every literal string of the package and its tools, f-strings without what is filled in."""
    for folder in ("kd_detr_mmdet", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", None) for part in node.values)
                    yield "\0".join(p if isinstance(p, str) else "" for p in parts)


def test_messages_in_the_table_are_those_of_the_source():
    """First column, in backquotes; '...' and an option's name stand for what is filled in."""
    said = "\n".join(strings_of_the_source())
    rows = re.findall(r"^\| (.*?) \| .* \| .* \|$", TEXT.split("## 8. ")[1], re.M)
    messages = [m for row in rows for m in re.findall(r"`([^`]+)`", row) if " " in m]
    assert len(messages) > 25
    for message in messages:
        for part in re.split(r"\.\.\.|^teacher\.checkpoint", message):
            assert part.strip() in said, f"{part!r} of {message!r}"
