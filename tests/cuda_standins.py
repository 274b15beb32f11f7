"""Libraries with the names and the needs of CUDA's and of the engine's backend, and nothing in them.

python tests/cuda_standins.py FOLDER      as packaging/build_cuda.sh leaves the real ones
"""

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

BESIDE = "$ORIGIN/../../../../../cuda"  # from the engine's libraries to CUDA's, as the package has them


def library(file: Path, needs: Sequence[Path] = (), runpath: str = "") -> Path:
    """A shared library that needs these, found in `runpath`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    paths = [f"-Wl,--enable-new-dtags,-rpath,{runpath}"] if runpath else []
    subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{file.name}", "-Wl,--no-as-needed", "-x", "c", "/dev/null",
                    "-x", "none", *map(str, needs), *paths, "-o", str(file)], check=True)  # fmt: skip
    return file


def wheel(folder: Path, name: str, where: str, libraries: Sequence[Path]) -> Path:
    file = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as out:
        for one in libraries:
            out.write(one, f"{where}/{one.name}")
        meta = f"Metadata-Version: 2.4\nName: {name.replace('_', '-')}\nVersion: 1.0\nLicense-Expression: MIT\n"
        out.writestr(f"{name}-1.0.dist-info/METADATA", meta)
        out.writestr(f"{name}-1.0.dist-info/licenses/License.txt", f"of {name}\n")
    return file


def make(folder: Path) -> None:
    made = folder / "made"
    driver, base = library(made / "libcuda.so.1"), library(made / "libggml-base.so.0")
    runtime, lt = library(made / "libcudart.so.13"), library(made / "libcublasLt.so.13")
    blas, nvblas = library(made / "libcublas.so.13", [lt], "$ORIGIN"), library(made / "libnvblas.so.13")
    nccl = library(made / "libnccl.so.2")
    (folder / "architectures").write_text("90-real\n")
    library(folder / "libggml-cuda.so", [driver, base, runtime, blas, nccl], BESIDE)
    wheel(folder / "wheels", "nvidia_cuda_runtime", "nvidia/cu13/lib", [runtime])
    wheel(folder / "wheels", "nvidia_cublas", "nvidia/cu13/lib", [lt, blas, nvblas])
    wheel(folder / "wheels", "nvidia_nccl_cu13", "nvidia/nccl/lib", [nccl])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
