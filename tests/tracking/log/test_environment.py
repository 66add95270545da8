"""Environment tags: which are recorded, and which decide whether a checkpoint may be resumed."""

import pytest
import torch

from reprogpt.numerics.device import Numerics
from reprogpt.tracking.log.environment import (
    CPU_TAGS,
    ENVIRONMENT_TAGS,
    depends_on_cpu,
    environment_tags,
    resume_tags,
)

CPU = torch.device("cpu")
TAGS = {name: f"value of {name}" for name in (*ENVIRONMENT_TAGS, "started_from_sha256", "command")}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU that only has a name."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    return torch.device("cuda")


def test_every_environment_tag_but_num_processes_is_recorded_and_the_command() -> None:
    tags = environment_tags(Numerics(CPU, "fp32", "torch"))
    assert tags.keys() == {*ENVIRONMENT_TAGS, "command"} - {"num_processes"}
    assert all(tags.values())
    assert (tags["device"], tags["matmul"]) == ("cpu", "torch")


def test_on_a_gpu_the_same_tags_are_recorded_with_its_name(gpu: torch.device) -> None:
    tags = environment_tags(Numerics(gpu, "bf16", "torch"))
    assert tags.keys() == {*ENVIRONMENT_TAGS, "command"} - {"num_processes"}
    assert tags["device"] == "NVIDIA H100"


def test_cpu_tags_are_environment_tags() -> None:
    assert set(CPU_TAGS) <= set(ENVIRONMENT_TAGS)


@pytest.mark.parametrize(
    ("device", "matmul", "depends"),
    [
        ("cpu", "torch", True),
        ("cpu", "onednn", True),
        ("cpu", "portable", False),
        ("NVIDIA H100", "torch", False),
        ("mps", "torch", False),
    ],
)
def test_a_resume_ignores_the_command_and_what_its_bits_do_not_depend_on(
    device: str, matmul: str, depends: bool
) -> None:
    tags = TAGS | {"device": device, "matmul": matmul}
    ignored = {"command"} if depends else {"command", "instruction_set", "cpu_vendor", "cpu_model", "threads"}
    assert depends_on_cpu(tags) is depends
    assert resume_tags(tags) == {name: value for name, value in tags.items() if name not in ignored}
