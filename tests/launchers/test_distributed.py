"""Two processes of one machine, with gloo on the CPU; what two GPUs do is the `gpu` test at the end."""

from __future__ import annotations

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ultralytics.engine import trainer

from yolo_dcnv4.registry.pack import PACK

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")

# per-sample batch statistics would differ between one process and two: evaluation mode keeps them out of the comparison
STEP = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from ultralytics import YOLO

# run alone or by torchrun
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
model = YOLO("yolov8n-dcnv4-backbone.yaml").model
generator = torch.Generator().manual_seed(1)
for name, parameter in model.named_parameters():
    # a constant of the head
    parameter.requires_grad_(".dfl" not in name)
    if "offset_mask.weight" in name:
        parameter.data.normal_(std=0.05, generator=generator)
x = torch.rand(4, 3, 64, 64, generator=generator).chunk(world)[rank]
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.eval()
if world > 1:
    dist.init_process_group("gloo")
# held until the end: its reducer works during the backward pass
outer = DistributedDataParallel(model) if world > 1 else model
out = outer(x)
parts = [out["boxes"], out["scores"]] if isinstance(out, dict) else out
# the mean over the batch: DistributedDataParallel averages over processes
sum(part.square().mean() for part in parts).backward()
gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
torch.save(gradients, f"{sys.argv[1]}/{world}-{rank}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one(run, tmp_path: Path):
    script = tmp_path / "step.py"
    script.write_text(STEP)
    run(str(script), str(tmp_path))
    run(*TORCHRUN, str(script), str(tmp_path))
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert sum(".dcn." in name for name in alone) >= 12
    assert alone.keys() == first.keys() == second.keys()
    for name, gradient in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))


# ultralytics' own launcher, which starts torch.distributed.run on a file it writes; it takes GPUs for granted
GLOO_TRAINER = """
import os
import own_blocks
import torch
import torch.distributed as dist
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOCAL_RANK, RANK
from yolo_dcnv4.registry import registered


class GlooTrainer(DetectionTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.world_size, self.ddp = int(os.environ.get("WORLD_SIZE", 2)), LOCAL_RANK == -1

    def _setup_ddp(self):
        dist.init_process_group("gloo", rank=RANK, world_size=self.world_size)
        parallel = torch.nn.parallel.DistributedDataParallel
        torch.nn.parallel.DistributedDataParallel = lambda model, device_ids, **more: parallel(model, **more)
        # in one piece: both processes write to the same pipe
        print(" ".join((f"worker {RANK} knows", *registered())) + "\\n", end="", flush=True)

    def final_eval(self):
        pass  # with several processes the validator asks for a CUDA device
"""
TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from gloo_trainer import GlooTrainer
from ultralytics import YOLO
if __name__ == "__main__":
    YOLO(sys.argv[3]).train(
        trainer=GlooTrainer, data=sys.argv[2], epochs=2, imgsz=64, batch=4, workers=0, plots=False, device="cpu",
        project=sys.argv[1], name="train"
    )
"""
NAMES = "import sys; from ultralytics import YOLO; print(*[type(m).__name__ for m in YOLO(sys.argv[1]).model.model])"


gloo_trainer = pytest.mark.skipif(
    "self.ddp" not in Path(trainer.__file__).read_text(encoding="utf-8"),
    reason="this ultralytics keeps its launcher where a trainer of one's own cannot reach it",
)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "gloo_trainer.py").write_text(GLOO_TRAINER)
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path / "train.py"


def assert_both_have_trained(out: str, run, folder: Path) -> None:
    for rank in range(2):
        known = re.findall(rf"worker {rank} knows (.*)", out)
        assert len(known) == 1, out
        assert set(known[0].split()) == {*PACK, "OwnC2f"}
    assert len((folder / "train" / "results.csv").read_text().strip().splitlines()) == 3
    names = run("-c", NAMES, str(folder / "train" / "weights" / "best.pt"), PYTHONPATH=str(folder)).split()
    assert names.count("C2f_DCNv4") == 3 and names.count("OwnC2f") == 4


@pytest.mark.slow
@gloo_trainer
def test_launcher_of_ultralytics_with_two_workers(run, data: Path, own_model: Path, script: Path):
    # up to 8.4.120 workers import the trainer by its name
    out = run(str(script), str(script.parent), str(data), str(own_model), PYTHONPATH=str(script.parent))
    assert_both_have_trained(out, run, script.parent)


@pytest.mark.slow
@gloo_trainer
def test_two_nodes_on_one_machine(run, data: Path, own_model: Path, script: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}")
    command = ("-m", "torch.distributed.run", *words)
    arguments = (str(script), str(script.parent), str(data), str(own_model))
    with ThreadPoolExecutor() as pool:
        nodes = [pool.submit(run, *command, f"--node_rank={node}", *arguments) for node in range(2)]
        out = "\n".join(node.result() for node in nodes)
    assert_both_have_trained(out, run, script.parent)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(run, data: Path, tmp_path: Path):
    code = "import sys; from ultralytics.cfg import entrypoint; sys.argv[0] = 'yolo'; entrypoint()"
    words = "epochs=2 imgsz=64 batch=8 workers=0 plots=False device=0,1".split()
    model = "model=yolov8n-dcnv4-backbone.yaml"
    run("-c", code, "train", model, f"data={data}", f"project={tmp_path}", "name=train", *words)
    assert len((tmp_path / "train" / "results.csv").read_text().strip().splitlines()) == 3
