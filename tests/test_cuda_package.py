"""What the package llmd-cuda holds: all that its backend needs, and that neither Debian nor the driver has."""

import json
import subprocess
import sys
from pathlib import Path

import cuda_standins
import pytest
from cuda_standins import BESIDE, library

PROGRAM = Path(__file__).parents[1] / "packaging/deb/cuda.py"
ENGINE = "usr/lib/llmd/lib/python3.11/site-packages/llama_cpp/lib"


def lay_out(root: Path, made: Path) -> subprocess.CompletedProcess[str]:
    house = root.parent / "house"
    house.mkdir()
    for file in [made / "libggml-cuda.so", made / "architectures", *(made / "wheels").glob("*.whl")]:
        (house / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-I", str(PROGRAM), str(root), str(house), f"/{ENGINE}"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    cuda_standins.make(tmp_path / "made")
    return tmp_path / "made"


def test_the_backend_its_libraries_and_theirs(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    done = lay_out(root, made)
    assert done.returncode == 0, done.stderr
    files = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
    libraries = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libnccl.so.2")
    documents = "usr/share/doc/llmd-cuda"
    assert files == {
        f"{ENGINE}/libggml-cuda.so",
        f"{ENGINE}/libggml-cuda.architectures",
        *(f"usr/lib/llmd/cuda/{name}" for name in libraries),
        *(f"{documents}/{n}.License.txt" for n in ("nvidia_cuda_runtime", "nvidia_cublas", "nvidia_nccl_cu13")),
        f"{documents}/sbom.cdx.json",
    }
    bill = json.loads((root / documents / "sbom.cdx.json").read_text())
    assert [one["purl"] for one in bill["components"]] == [
        "pkg:pypi/nvidia-cublas@1.0", "pkg:pypi/nvidia-cuda-runtime@1.0", "pkg:pypi/nvidia-nccl-cu13@1.0",
    ]  # fmt: skip
    # the loader agrees, where the driver and the engine's own library are given
    given = [made / "made/libcuda.so.1", made / "made/libggml-base.so.0"]
    program = "import ctypes, sys\nfor name in sys.argv[1:]: ctypes.CDLL(name, ctypes.RTLD_GLOBAL)"
    backend = root / ENGINE / "libggml-cuda.so"
    subprocess.run([sys.executable, "-c", program, *map(str, given), str(backend)], check=True)


def test_a_library_that_nobody_has(made: Path, tmp_path: Path) -> None:
    (made / "wheels/nvidia_nccl_cu13-1.0-py3-none-any.whl").unlink()
    done = lay_out(tmp_path / "root", made)
    assert done.returncode == 1 and "libggml-cuda.so needs libnccl.so.2, which neither" in done.stderr
    assert not (tmp_path / "root" / ENGINE).exists()


def test_a_library_that_another_one_needs(made: Path, tmp_path: Path) -> None:
    rt = made / "made/libcudart.so.13"
    library(rt, [library(made / "made/libnvrtc.so.13")], "$ORIGIN")
    cuda_standins.wheel(made / "wheels", "nvidia_cuda_runtime", "nvidia/cu13/lib", [rt])
    done = lay_out(tmp_path / "root", made)
    assert done.returncode == 1 and "libcudart.so.13 needs libnvrtc.so.13, which neither" in done.stderr


@pytest.mark.parametrize("path", ["", "$ORIGIN", "/opt/cuda/lib64", BESIDE + "/lib"])
def test_a_backend_that_does_not_look_where_they_are(path: str, made: Path, tmp_path: Path) -> None:
    library(made / "libggml-cuda.so", [made / "made/libcudart.so.13"], path)
    done = lay_out(tmp_path / "root", made)
    assert done.returncode == 1 and "does not look for it in /usr/lib/llmd/cuda" in done.stderr
