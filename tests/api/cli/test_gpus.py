"""`llmctl gpus` and the GPUs in `llmctl doctor`: a daemon's admin socket on machines that a fake makes up."""

import asyncio
import json
import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import small_models
from fake_nvml import GIB, FakeNvml, NoPermission, a100_mig, gb10, h200, old_card
from real_daemon import Llmd
from scripted_admin import Admin, scripted

from llmd.daemon.state.records import Info
from llmd.quantize.shape import Layer, Shape

ONE, TWO = h200(0).uuid, h200(1).uuid


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    async with scripted(tmp_path) as admin:
        yield admin


def row(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


async def test_every_gpu_is_a_row(admin: Admin) -> None:
    fake = FakeNvml(h200(0), h200(1), old_card(2))
    fake.gpus[1].utilization = 88
    fake.hold(TWO, 4711, 100 * GIB)
    fake.hold(TWO, 4712, None)
    admin.see(fake)
    text = await admin.run("gpus")
    assert text.startswith("NVIDIA driver 580.95.05, CUDA 13.1\nGPU  NAME")
    assert row(text, "0 ").split()[:8] == ["0", "NVIDIA", "H200", ONE, "512.0", "MiB", "of", "141.0"]
    second = row(text, "1 ")
    assert "100.5 GiB of 141.0 GiB" in second and "90 of 700 W" in second and "35 °C" in second and "88 %" in second
    assert " ok " in second and second.endswith("4711 (100.0 GiB), 4712")
    assert "Tesla P4" in row(text, "2 ")
    assert row(text, "18 NVLinks") == "18 NVLinks (NV18): GPUs 0-1"
    assert row(text, "through") == "through a CPU's PCIe, from one root to another (NODE): GPUs 0-2, 1-2"


async def test_one_kind_of_link_for_all(admin: Admin) -> None:
    admin.see(FakeNvml(*(h200(n) for n in range(4))))
    assert (await admin.run("gpus")).splitlines()[-1] == "18 NVLinks (NV18): every pair of GPUs"


async def test_mig_instances_stand_under_their_gpu(admin: Admin) -> None:
    fake = FakeNvml(a100_mig(0), h200(1))
    fake.hold("MIG-a100-0-1", 99, GIB)
    admin.see(fake)
    lines = (await admin.run("gpus")).splitlines()[2:]
    assert lines[0].startswith("0    NVIDIA A100-SXM4-80GB") and "90 of 400 W" in lines[0]
    assert lines[1].startswith("       MIG 2g.20gb") and "MIG-a100-0-0" in lines[1]
    assert "MIG-a100-0-1" in lines[2] and lines[2].endswith("99 (1.0 GiB)")
    assert lines[3].startswith("1    NVIDIA H200") and len(lines) == 4


async def test_the_servers_memory_is_marked(admin: Admin) -> None:
    admin.see(FakeNvml(gb10(0)))
    assert "28.0 GiB of 128.0 GiB (the server's)" in await admin.run("gpus")
    assert "the server's own" in (await admin.checks(1))["gpu 0"]["message"]


async def test_json_has_everything(admin: Admin) -> None:
    admin.see(FakeNvml(h200(0), h200(1)))
    told = await admin.json("gpus")
    assert [gpu["uuid"] for gpu in told["gpus"]] == [ONE, TWO] and told["gpus"][0]["health"]["state"] == "ok"
    assert told["links"][0]["level"] == "NV18" and told["gone"] == [] and told["answered"] is True
    assert told["gpus"][0]["pci"] == "0000:10:00.0" and told["gpus"][0]["numa"] == 0


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (FakeNvml.without_driver, "no NVIDIA driver is installed"),
        (FakeNvml, "the NVIDIA driver runs but finds no GPU"),
    ],
)
async def test_without_a_gpu_one_sentence_says_why(admin: Admin, fake: Callable[[], FakeNvml], words: str) -> None:
    admin.see(fake())
    assert await admin.run("gpus") == f"No GPU, so models run on the CPU: {words}.\n"
    check = (await admin.checks(1))["gpu"]
    assert check["ok"] is None and check["message"] == f"CPU only: {words}" and check["fix"] == ""


async def test_gpus_that_may_not_be_opened_are_no_reason_for_the_cpu(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmd.daemon.admin.doctor.cuda_engine", lambda: True)
    admin.see(FakeNvml.without_driver(NoPermission))
    assert await admin.run("gpus") == "No GPU can be used: llmd may not open the GPUs (/dev/nvidia*).\n"
    check = (await admin.checks(1))["gpu"]
    assert check["ok"] is False and "may not open" in check["message"] and "docs/gpus.md" in check["fix"]


async def test_what_is_wrong_is_said_and_what_to_do(admin: Admin) -> None:
    fake = FakeNvml(h200(0), h200(1), h200(2), h200(3))
    watcher = admin.see(fake)
    fake.emit(ONE, "xid", 48)
    fake.gpus[2].throttle = 0x40
    fake.gpus[3].throttle, fake.gpus[3].ecc_errors = 0x04, 2
    watcher.step()
    fake.lose(TWO)
    watcher.step()
    watcher.refresh()
    text = await admin.run("gpus")
    assert " draining" in row(text, "0 ")
    assert row(text, "GPU 0 is") == "GPU 0 is draining: a memory error that could not be corrected (XID 48)"
    assert row(text, "NVIDIA H200") == f"NVIDIA H200 ({TWO}) is removed: the GPU is lost: the driver cannot reach it"
    checks = await admin.checks(1)
    assert (
        checks["gpu 0"]["ok"] is False and "XID 48" in checks["gpu 0"]["message"] and "reset" in checks["gpu 0"]["fix"]
    )
    gone = checks[f"gpu NVIDIA H200 ({TWO})"]
    assert gone["ok"] is False and "lost" in gone["message"] and "restart the server" in gone["fix"]
    assert (
        checks["gpu 2"]["ok"] is None
        and "too hot" in checks["gpu 2"]["message"]
        and "cooling" in checks["gpu 2"]["fix"]
    )
    assert checks["gpu 3"]["ok"] is True and "2 memory errors" in checks["gpu 3"]["message"]
    assert "power limit" in checks["gpu 3"]["message"] and checks["gpu 3"]["fix"] == ""


async def test_a_gpu_that_was_reset_is_used_again_and_one_that_was_not_is_not(admin: Admin) -> None:
    fake = FakeNvml(h200(0), h200(1))
    watcher = admin.see(fake)
    fake.emit(ONE, "xid", 48)
    fake.lose(TWO)
    watcher.step()
    watcher.refresh()
    assert await admin.run("gpus", "--use", ONE) == f"GPU {ONE} is used again: ok\n"
    assert watcher.health(ONE).usable
    await admin.run("gpus", "--use", TWO, code=1)
    assert watcher.health(TWO).state == "removed"
    await admin.run("gpus", "--use", "GPU-nobody", code=1)
    rows = await admin.daemon.audit.tail(100)
    said = [(r["body"]["gpu"], r["body"]["result"]) for r in rows if r["kind"] == "admin.gpu_use"]
    assert said == [(ONE, "begun"), (ONE, "done"), (TWO, "begun"), (TWO, "failed")]


async def test_when_every_gpu_is_lost_nothing_speaks_of_the_cpu(admin: Admin) -> None:
    fake = FakeNvml(h200(0))
    watcher = admin.see(fake)
    fake.lose(ONE)
    watcher.refresh()
    text = await admin.run("gpus")
    assert "No GPU can be used" in text and "is removed" in text and "CPU" not in text
    checks = await admin.checks(1)
    assert [check["ok"] for check in checks.values()] == [False] and "CPU" not in json.dumps(checks)


async def test_a_driver_that_does_not_answer_is_told_with_what_was_known(admin: Admin) -> None:
    fake = FakeNvml(h200(0))
    watcher = admin.see(fake)
    fake.unload()
    watcher.refresh()
    lines = (await admin.run("gpus")).splitlines()
    assert "restarted; this is how it was at 20" in lines[0] and "NVIDIA H200" in lines[3]
    checks = await admin.checks(1)
    assert (checks["gpu driver"]["ok"], checks["gpu 0"]["ok"]) == (False, True)


async def test_names_from_a_driver_drive_no_terminal(admin: Admin) -> None:
    gpu = h200(0)
    gpu.name = "H200\x1b[2J\n"
    admin.see(FakeNvml(gpu))
    assert "\x1b" not in await admin.run("gpus")


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def _watch(admin: Admin, *arguments: str) -> asyncio.subprocess.Process:
    # a test run in the background inherits an ignored SIGINT, and would hand it on
    return await asyncio.create_subprocess_exec(
        *admin.command, "gpus", "--watch", *arguments, stdout=subprocess.PIPE, preexec_fn=_heed_interrupts
    )


async def test_watch_prints_a_block_again_and_again_until_interrupted(admin: Admin) -> None:
    fake = FakeNvml(h200(0))
    watcher = admin.see(fake)
    process = await _watch(admin)
    assert process.stdout
    block = [await asyncio.wait_for(process.stdout.readline(), 60) for _ in range(4)]
    assert b"NVIDIA driver" in block[0] and b"NVIDIA H200" in block[2] and block[3] == b"\n"
    fake.hold(ONE, 12, 9 * GIB)
    watcher.refresh()
    while b"12 (9.0 GiB)" not in await asyncio.wait_for(process.stdout.readline(), 60):
        pass
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 60) == 130


async def test_watch_with_json_is_one_object_a_line(admin: Admin) -> None:
    admin.see(FakeNvml(h200(0)))
    process = await _watch(admin, "--json")
    assert process.stdout
    told = [json.loads(await asyncio.wait_for(process.stdout.readline(), 60)) for _ in range(2)]
    assert [len(value["gpus"]) for value in told] == [1, 1]
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 60) == 130


async def test_watch_clears_a_terminal(admin: Admin) -> None:
    admin.see(FakeNvml(h200(0)))
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *admin.command, "gpus", "--watch", stdout=theirs, preexec_fn=_heed_interrupts
    )
    os.close(theirs)
    seen = b""
    while seen.count(b"NVIDIA driver") < 2:
        seen += await asyncio.wait_for(asyncio.to_thread(os.read, ours, 4096), 60)
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 60) == 130
    os.close(ours)
    assert seen.count(b"\x1b[2J") >= 2


def test_a_real_daemon_answers(llmd: Llmd) -> None:
    told = llmd.llmctl("gpus")
    assert bool(told["gpus"]) != bool(told["reason"])
    assert [check for check in llmd.llmctl("doctor")["checks"] if check["name"].startswith("gpu")]


# --- where a model would go

LAYER = Layer(k=1024, v=1024, heads=32, kv_heads=8, q=4096, ff=14336, nbytes=140 << 20)
SHAPE = Shape("llama", 131072, 128256, 4096, (LAYER,) * 32, 128, 128, host=300 << 20, output=400 << 20, file=5 * GIB)


def import_model(admin: Admin) -> None:
    info = Info(context_length=131072, shape=SHAPE.to_dict())
    small_models.stored(admin.daemon.config.state / "models", "0" * 64, 5 * GIB)
    admin.daemon.store.add_model("m", "0" * 64, 5 * GIB, "m.gguf", info)


async def test_a_plan_names_the_gpu_the_bytes_and_the_command(admin: Admin) -> None:
    import_model(admin)
    fake = FakeNvml(h200(0), h200(1))
    fake.hold(ONE, 1, 20 * GIB)
    admin.see(fake)
    told = await admin.json("plan", "m", "--ctx", "8192", "--slots", "16")
    assert (told["gpus"], told["split"], told["kv"], told["context"], told["slots"]) == ([ONE], "none", "f16", 8192, 16)
    (device,) = told["devices"]
    assert device["need"]["kv"] == 16 * 8192 * 32 * 2048 * 2 and device["free"] == 120 * GIB + GIB // 2
    text = await admin.run("plan", "m", "--ctx", "8192", "--slots", "16", "--explain")
    assert row(text, "m@GGUF: ") == "m@GGUF: 16 slots of 8192 tokens, keys and values f16"
    assert row(text, "taken").startswith("taken  16 slots of 8192 tokens, f16: m@GGUF fits on NVIDIA H200")
    assert row(text, ONE).split()[1:5] == ["NVIDIA", "H200", *row(text, ONE).split()[3:5]]
    command = row(text, "deploy it so: ").removeprefix("deploy it so: ")
    assert command == f"llmctl deploy m --ctx 8192 --slots 16 --gpus {ONE} --ubatch 2048"


async def test_what_does_not_fit_is_said_with_what_would(admin: Admin) -> None:
    import_model(admin)
    admin.see(FakeNvml(old_card(0)))
    process = await asyncio.create_subprocess_exec(
        *admin.command, "plan", "m", "--ctx", "32768", "--slots", "8", stderr=subprocess.PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"are missing" in err and b"What would fit: --ctx 2048" in err and len(err.splitlines()) == 1


async def test_a_plan_is_for_the_cpu_only_where_there_never_was_a_gpu(admin: Admin) -> None:
    import_model(admin)
    admin.see(FakeNvml())
    told = await admin.json("plan", "m", "--ctx", "512", "--slots", "1")
    assert told["gpus"] == [] and told["devices"][0]["need"]["weights"] == 5 * GIB


async def test_a_fault_never_moves_a_plan_to_the_cpu(admin: Admin) -> None:
    import_model(admin)
    fake = FakeNvml(h200(0))
    watcher = admin.see(fake)
    fake.emit(ONE, "xid", 48)
    watcher.step()
    assert (await admin.json("plan", "m", code=1)) == {}


async def test_gpus_that_the_engine_cannot_use_are_told(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    admin.see(FakeNvml(h200(0)))
    for cuda in (False, True):
        monkeypatch.setattr("llmd.daemon.admin.doctor.cuda_engine", lambda cuda=cuda: cuda)
        checks = await admin.checks(1)
        assert ("gpu engine" in checks) is not cuda
    assert checks["gpu 0"]["ok"] is True


OLD_CARD = "this engine has no code for its compute capability 6.1 (it has 90-real)"
SHORT = ("--ctx", "1024", "--slots", "1")  # with so little it would fit on the old card too


async def test_no_model_goes_to_a_card_that_the_engine_has_no_code_for(admin: Admin) -> None:
    import_model(admin)
    admin.see(FakeNvml(old_card(0), h200(1)), ["90-real"])
    found = await admin.json("plan", "m", *SHORT)
    assert found["gpus"] == ["GPU-h200-1"]
    assert found["steps"][0] == {"what": "Tesla P4 (GPU-old-0)", "taken": False, "why": OLD_CARD}
    assert f"GPU GPU-old-0: {OLD_CARD}" in await refused(admin, "plan", "m", "--gpus", "GPU-old-0", *SHORT)
    text = await admin.run("gpus")
    assert f"GPU 0 takes no model: {OLD_CARD}" in text and "GPU 1 takes" not in text
    check = (await admin.checks(1))["gpu 0"]
    assert check["ok"] is None and check["message"] == f"Tesla P4 takes no model: {OLD_CARD}"
    admin.see(FakeNvml(old_card(2)), ["90-real"])
    assert f"no GPU can be used; {OLD_CARD}" in await refused(admin, "plan", "m", *SHORT)


async def test_an_ignored_card_is_kept_out_and_no_fault_of_the_box(admin: Admin) -> None:
    import_model(admin)
    watcher = admin.see(FakeNvml(h200(0), h200(1)))
    said = await admin.run("gpus", "--ignore", ONE)
    assert said == f"GPU {ONE} is ignored: no model goes there, and what runs there moves (`llmctl status`)\n"
    text = await admin.run("gpus")
    assert " ignored" in row(text, "0 ") and row(text, "GPU 0 is ignored") and row(text, "1 ").endswith(" ok")
    found = await admin.json("plan", "m", *SHORT)
    assert found["gpus"] == [TWO] and "--use UUID" in found["steps"][0]["why"]
    assert f"GPU {ONE}: an administrator keeps it out" in await refused(admin, "plan", "m", "--gpus", ONE, *SHORT)
    watcher.clear(TWO)
    check = (await admin.checks(1))["gpu 0"]
    assert check["ok"] is True and "ignored" in check["message"]
    told = await admin.json("gpus", "--ignore", TWO)
    assert told == {"gpu": TWO, "ignored": True} and admin.daemon.store.ignored_gpus() == {ONE, TWO}
    assert "Every GPU is ignored, so models run on the CPU.\n" in await admin.run("gpus")
    assert (await admin.json("plan", "m", "--ctx", "512", "--slots", "1"))["gpus"] == []
    assert await admin.run("gpus", "--use", TWO) == f"GPU {TWO} is used again: ok\n"
    assert admin.daemon.store.ignored_gpus() == {ONE} and watcher.view.usable == {TWO}
    await admin.run("gpus", "--ignore", "GPU-nobody", code=1)
    assert "one at a time" in await refused(admin, "gpus", "--ignore", ONE, "--use", TWO, code=2)
    rows = await admin.daemon.audit.tail(100)
    acts = [(r["kind"], r["body"]["gpu"], r["body"]["result"]) for r in rows if r["kind"].startswith("admin.gpu")]
    assert [act for act in acts if act[2] == "done"] == [
        ("admin.gpu_ignore", ONE, "done"), ("admin.gpu_ignore", TWO, "done"), ("admin.gpu_use", TWO, "done"),
    ]  # fmt: skip


async def test_what_is_ignored_stays_so_after_a_restart_and_when_the_card_is_gone(admin: Admin) -> None:
    admin.see(FakeNvml(h200(0), h200(1)))
    await admin.run("gpus", "--ignore", ONE)
    fake = FakeNvml(h200(1))
    watcher = admin.see(fake)  # as another start, without the card
    admin.daemon.service.cards.restore()
    assert f"{ONE} is ignored, and not there" in await admin.run("gpus")
    assert await admin.run("gpus", "--use", ONE) == f"GPU {ONE} is not ignored any more; it is not there now.\n"
    fake.emit(TWO, "xid", 48)
    watcher.step()
    await admin.run("gpus", "--ignore", TWO)
    check = (await admin.checks(1))["gpu 0"]
    assert check["ok"] is True and "draining: a memory error" in check["message"]
    fake.gpus[0].recovery = 1
    assert "is draining again" in await refused(admin, "gpus", "--use", TWO)
    assert admin.daemon.store.ignored_gpus() == {TWO}
    fake.lose(TWO)
    watcher.refresh()
    assert "is removed, ignored: " in await admin.run("gpus")
    check = (await admin.checks(1))[f"gpu NVIDIA H200 ({TWO})"]
    assert check["ok"] is True and check["message"].startswith("ignored, removed: ")


async def test_a_gpu_in_mig_mode_is_ignored_with_its_instances(admin: Admin) -> None:
    watcher = admin.see(FakeNvml(a100_mig(0), h200(1)))
    await admin.run("gpus", "--ignore", "GPU-a100-0")
    assert watcher.view.usable == {TWO}
    assert "`llmctl gpus --use GPU-a100-0`" in await refused(admin, "gpus", "--use", "MIG-a100-0-1")
    assert await admin.run("gpus", "--use", "GPU-a100-0") == "GPU GPU-a100-0 is used again: ok\n"
    assert watcher.view.usable == {TWO, "MIG-a100-0-0", "MIG-a100-0-1"}


async def test_an_old_card_is_the_last_choice_where_nothing_is_known_of_the_engine(admin: Admin) -> None:
    import_model(admin)
    admin.see(FakeNvml(old_card(0), h200(1)))
    assert (await admin.json("plan", "m", *SHORT))["gpus"] == ["GPU-h200-1"]
    admin.see(FakeNvml(old_card(2)))
    assert (await admin.json("plan", "m", *SHORT))["gpus"] == ["GPU-old-2"]


async def refused(admin: Admin, *arguments: str, code: int = 1) -> str:
    process = await asyncio.create_subprocess_exec(*admin.command, *arguments, stderr=subprocess.PIPE)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == code
    return err.decode()
