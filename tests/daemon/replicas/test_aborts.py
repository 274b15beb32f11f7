"""What llama.cpp prints as it gives up: on an H100 (nearly full when the model came; a kernel that traps; one that
writes where it may not), and as people saw it on their machines (the reports are named)."""

import pytest

from llmd.daemon.replicas.aborts import Abort, read

WEIGHTS = """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4155.99 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 4357873664
llama_model_load: error loading model: unable to allocate CUDA0 buffer
llama_model_load_from_file_impl: failed to load model"""
KV = """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 32768.00 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 34359738368
llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"""
TRAP = """\
CUDA error: unspecified launch failure
  current device: 0, in function ggml_backend_cuda_buffer_set_tensor at /src/ggml/src/ggml-cuda/ggml-cuda.cu:784
  cudaStreamSynchronize(((cudaStream_t)0x2))
/src/ggml/src/ggml-cuda/ggml-cuda.cu:109: CUDA error
/usr/lib/llmd/lib/libggml-base.so.0(+0x3293b)[0x7fc03570f93b]
/usr/lib/llmd/lib/libggml-base.so.0(ggml_abort+0x15b)[0x7fc03570ff9b]
/usr/lib/llmd/lib/libggml-cuda.so.0(_Z15ggml_cuda_errorPKcS0_S0_iS0_+0xb7)[0x7fc00d963c97]
/lib/x86_64-linux-gnu/libc.so.6(__libc_start_main+0x8b)[0x7fc24a22a28b]"""
WILD = TRAP.replace("unspecified launch failure", "an illegal memory access was encountered")
MALLOC = """\
load_tensors: loading model tensors, this can take a while... (mmap = true, direct_io = false)
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 151851674624
llama_model_load: error loading model: unable to allocate CUDA0 buffer"""  # ggml-org/llama.cpp#20431
COMPUTE = """\
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9866.00 MiB on device 1: cudaMalloc failed: out of memory
ggml_gallocr_reserve_n: failed to allocate CUDA1 buffer of size 10345253120
llama_kv_cache_update_impl: failed to allocate compute buffers"""  # ggml-org/llama.cpp#11476
POOL = """\
CUDA error: out of memory
  current device: 0, in function alloc at /src/ggml/src/ggml-cuda/ggml-cuda.cu:490
  cuMemCreate(&handle, reserve_size, &prop, 0)
/src/ggml/src/ggml-cuda/ggml-cuda.cu:109: CUDA error
[New LWP 4711]
0x00007f67e49eb1c in wait4 () from /lib/x86_64-linux-gnu/libc.so.6"""  # as ggml_cuda_error and ggml_abort print it
LAUNCH = """\
ggml_cuda_compute_forward: RMS_NORM failed
CUDA error: unspecified launch failure
  current device: 1, in function ggml_cuda_compute_forward at /tmp/x/ggml/src/ggml-cuda/ggml-cuda.cu:2311
  err
/tmp/x/ggml/src/ggml-cuda/ggml-cuda.cu:72: CUDA error"""  # nextcloud/llm2#50
ASSERT = "/home/someone/llama.cpp/ggml/src/ggml.c:3210: GGML_ASSERT(ggml_can_mul_mat(a, b)) failed"
RETRIED = MALLOC + "\nsched_reserve: compute buffer allocation failed, retrying without pipeline parallelism\n" + LAUNCH


@pytest.mark.parametrize(
    ("text", "abort"),
    [
        (WEIGHTS, Abort(True, "CUDA: out of memory")),
        (KV, Abort(True, "CUDA: out of memory")),
        (TRAP, Abort(False, "CUDA: unspecified launch failure")),
        (WILD, Abort(False, "CUDA: an illegal memory access was encountered")),
        (MALLOC, Abort(True, "CUDA: out of memory")),
        (COMPUTE, Abort(True, "CUDA: out of memory")),
        (POOL, Abort(True, "CUDA: out of memory")),
        ("CUDA error: the resource allocation failed", Abort(True, "CUDA: the resource allocation failed")),
        (LAUNCH, Abort(False, "CUDA: unspecified launch failure")),
        (RETRIED, Abort(False, "CUDA: unspecified launch failure")),
        (ASSERT, Abort(False, "llama.cpp gave up at ggml.c:3210")),
        ("Traceback (most recent call last):\nMemoryError", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_cause_and_no_path(text: str, abort: Abort | None) -> None:
    assert read(text.splitlines()) == abort
