"""The inventory and NVML's events, on machines that a fake makes up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fake_nvml import (
    GIB,
    SWITCH,
    DriverNotLoaded,
    Error,
    FakeMig,
    FakeNvml,
    FunctionNotFound,
    GpuIsLost,
    LibraryNotFound,
    NoPermission,
    NotSupported,
    Unknown,
    a100_mig,
    gb10,
    h200,
    old_card,
)

from llmd.daemon.gpus.asking import cuda_version, pci_address
from llmd.daemon.gpus.inventory import RECOVERY, Event, Gpu, Inventory, Process
from llmd.daemon.gpus.nvml import Nvml

ONE, TWO = h200(0).uuid, h200(1).uuid


def watch(fake: FakeNvml, tmp_path: Path) -> tuple[Nvml, Inventory]:
    nvml = Nvml(fake, fake.root(tmp_path))
    return nvml, nvml.inventory()


def look(fake: FakeNvml, tmp_path: Path) -> Inventory:
    return watch(fake, tmp_path)[1]


def level(found: Inventory, one: str, other: str) -> str:
    return found.links[frozenset((one, other))].level


# --- what is known of a GPU


def test_a_gpu_is_told_with_everything(tmp_path: Path) -> None:
    fake = FakeNvml(replace(h200(5), throttle=0x04 | 0x40, utilization=97, ecc_errors=3, numa=1, recovery=1))
    fake.hold("GPU-h200-5", 77, 20 * GIB)
    fake.hold("GPU-h200-5", 78, None)
    found = look(fake, tmp_path)
    assert found.gpus == (
        Gpu(
            uuid="GPU-h200-5",
            index=0,
            name="NVIDIA H200",
            total=141 * GIB,
            free=141 * GIB - 20 * GIB - GIB // 2,
            compute=(9, 0),
            pci="0000:15:00.0",
            numa=1,
            power_limit=700.0,
            power_draw=90.0,
            energy=90_000_000.0,
            temperature=35,
            utilization=97,
            ecc=True,
            ecc_uncorrected=3,
            throttle=("power_cap", "thermal_hw"),
            processes=(Process(77, 20 * GIB), Process(78, None)),
            recovery="gpu_reset",
        ),
    )
    assert (found.driver, found.cuda, found.reason, found.lost, found.answered) == ("580.95.05", "13.1", "", (), True)
    fake.release(77)
    assert Nvml(fake, tmp_path).inventory().gpus[0].free == 141 * GIB - GIB // 2


# the function whose answer is missing, the field that is unknown then, and its value
ALONE = [
    ("nvmlDeviceGetPciInfo", "pci", ""),
    ("nvmlDeviceGetName", "name", ""),
    ("nvmlDeviceGetMemoryInfo", "memory", 0),
    ("nvmlDeviceGetCudaComputeCapability", "compute", None),
    ("nvmlDeviceGetEnforcedPowerLimit", "power_limit", None),
    ("nvmlDeviceGetPowerUsage", "power_draw", None),
    ("nvmlDeviceGetUtilizationRates", "utilization", None),
    ("nvmlDeviceGetEccMode", "ecc", None),
    ("nvmlDeviceGetTotalEccErrors", "ecc_uncorrected", None),
    ("nvmlDeviceGetFieldValues", "recovery", None),
]
OLDER = [
    ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV", "temperature", None),
    ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2", "processes", ()),
    ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons", "throttle", ()),
]
# what other fields follow from it
FOLLOWS = {"pci": {"numa"}, "ecc": {"ecc_uncorrected"}, "memory": {"total", "free"}, "name": set[str]()}


@pytest.mark.parametrize("error", [Unknown, FunctionNotFound, NoPermission, UnicodeDecodeError, AttributeError])
@pytest.mark.parametrize(("function", "name", "value"), ALONE)
def test_a_query_that_fails_leaves_the_others(
    tmp_path: Path, function: str, name: str, value: object, error: Error
) -> None:
    fake = FakeNvml(h200(0), h200(1))
    whole = look(fake, tmp_path)
    fake.fail(function, (lambda: error("utf-8", b"", 0, 1, "")) if error is UnicodeDecodeError else error, uuid=TWO)  # type: ignore[arg-type]
    found = Nvml(fake, tmp_path).inventory()
    assert found.gpus[0] == whole.gpus[0]
    gpu = found.gpus[1]
    assert name in gpu.unknown and set(gpu.unknown) <= {name} | FOLLOWS.get(name, set())
    assert getattr(gpu, "total" if name == "memory" else name) == value and gpu.unified is False
    changed = {n for n in Gpu.__slots__ if getattr(gpu, n) != getattr(whole.gpus[1], n)}
    assert changed <= {name, "unknown"} | FOLLOWS.get(name, set())


@pytest.mark.parametrize(("newer", "older", "name", "value"), OLDER)
def test_an_older_query_stands_in(tmp_path: Path, newer: str, older: str, name: str, value: Any) -> None:
    fake = FakeNvml(replace(h200(0), throttle=0x40))
    fake.hold(ONE, 5, GIB)
    whole = look(fake, tmp_path).gpus[0]
    fake.fail(newer, FunctionNotFound)
    assert Nvml(fake, tmp_path).inventory().gpus[0] == whole
    fake.fail(older, FunctionNotFound)
    gpu = Nvml(fake, tmp_path).inventory().gpus[0]
    assert gpu == replace(whole, unknown=(name,), **{name: value}) and getattr(whole, name) != value


def test_the_machine_tells_the_numa_node_and_nvml_where_it_does_not(tmp_path: Path) -> None:
    fake = FakeNvml(replace(h200(0), numa=-1))  # as a virtual machine says it
    assert look(fake, tmp_path).gpus[0].numa is None
    fake._nvmlDeviceGetNumaNodeId = lambda gpu, _: 7  # type: ignore[method-assign]
    gpu = Nvml(fake, tmp_path).inventory().gpus[0]
    assert gpu.numa == 7 and gpu.unknown == ()


def test_an_old_card_and_a_new_one(tmp_path: Path) -> None:
    found = look(FakeNvml(old_card(0), h200(1)), tmp_path)
    old, new = found.gpus
    assert (old.total, old.compute, old.temperature, old.throttle) == (8 * GIB, (6, 1), 35, ())
    assert (old.ecc, old.recovery, old.unified) == (None, None, False)
    assert set(old.unknown) == {"ecc", "recovery"} and new.unknown == ()


def test_a_gb10_has_the_servers_memory(tmp_path: Path) -> None:
    fake = FakeNvml(gb10(0), h200(1))
    one, other = look(fake, tmp_path).gpus
    assert (one.total, one.free, one.unified) == (128 * GIB, 100 * GIB, True) and "memory" not in one.unknown
    assert (other.total, other.unified) == (141 * GIB, False)
    (tmp_path / "proc/meminfo").write_text("MemTotal: much\n")
    one = Nvml(fake, tmp_path).inventory().gpus[0]
    assert (one.total, one.free, one.unified) == (0, 0, True) and "memory" in one.unknown


@pytest.mark.parametrize("error", [Unknown, NoPermission, FunctionNotFound])
def test_only_not_supported_means_unified_memory(tmp_path: Path, error: Error) -> None:
    fake = FakeNvml(h200(0))
    fake.fail("nvmlDeviceGetMemoryInfo", error)
    gpu = look(fake, tmp_path).gpus[0]
    assert (gpu.total, gpu.unified, gpu.unknown) == (0, False, ("memory",))


def test_mig_instances_are_the_devices(tmp_path: Path) -> None:
    fake = FakeNvml(a100_mig(0), h200(1))
    fake.hold("MIG-a100-0-1", 9, 5 * GIB)
    first, second, other = look(fake, tmp_path).gpus
    assert [first.uuid, second.uuid, other.uuid] == ["MIG-a100-0-0", "MIG-a100-0-1", TWO]
    assert {first.parent, second.parent, other.parent} == {"GPU-a100-0", ""}
    assert (first.total, first.processes, second.processes) == (20 * GIB, (), (Process(9, 5 * GIB),))
    assert first.free - second.free == 5 * GIB
    assert (first.power_limit, first.temperature, first.pci, first.index) == (400.0, 35, "0000:10:00.0", 0)
    assert (first.utilization, first.unknown) == (None, ("utilization",))


def test_mig_instances_have_no_links_and_never_the_servers_memory(tmp_path: Path) -> None:
    fake = FakeNvml(a100_mig(0), a100_mig(1), h200(2))
    fake.fail("nvmlDeviceGetMemoryInfo", NotSupported)
    found = look(fake, tmp_path)
    assert found.links == {} and all(not gpu.unified and gpu.total == 0 for gpu in found.gpus if gpu.parent)
    assert len(found.gpus) == 5


def test_gaps_between_mig_instances_and_one_without_a_name(tmp_path: Path) -> None:
    fake = FakeNvml(a100_mig(0, instances=3))
    fake.fail("nvmlDeviceGetMigDeviceHandleByIndex", pynvml.NVMLError_NotFound, times=1)
    assert [gpu.uuid for gpu in look(fake, tmp_path).gpus] == ["MIG-a100-0-1", "MIG-a100-0-2"]
    fake.fail("nvmlDeviceGetUUID", Unknown, after=1, times=1)
    assert [gpu.uuid for gpu in Nvml(fake, tmp_path).inventory().gpus] == ["MIG-a100-0-1", "MIG-a100-0-2"]


def test_mig_mode_without_instances_is_said(tmp_path: Path) -> None:
    found = look(FakeNvml(a100_mig(0, instances=0)), tmp_path)
    assert found.gpus == () and found.lost == () and "MIG mode" in found.reason


def test_a_gpu_that_wants_a_reset_says_so(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    fake.fail("nvmlDeviceGetUtilizationRates", pynvml.NVMLError_ResetRequired)
    assert look(fake, tmp_path).gpus[0].recovery == "gpu_reset"


@pytest.mark.parametrize("number", range(len(RECOVERY)))
def test_every_recovery_action_of_pynvml_has_its_name(tmp_path: Path, number: int) -> None:
    gpu = look(FakeNvml(replace(h200(0), recovery=number)), tmp_path).gpus[0]
    assert getattr(pynvml, f"NVML_GPU_RECOVERY_ACTION_{str(gpu.recovery).upper()}") == number


def test_a_recovery_action_that_nobody_knows_is_unknown(tmp_path: Path) -> None:
    gpu = look(FakeNvml(replace(h200(0), recovery=99)), tmp_path).gpus[0]
    assert gpu.recovery is None and gpu.unknown == ("recovery",)


def test_it_becomes_json(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1), a100_mig(2))
    fake.hold(ONE, 3, GIB)
    told = json.loads(json.dumps(look(fake, tmp_path).to_dict()))
    assert told["gpus"][0]["processes"] == [{"pid": 3, "used": GIB}]
    assert told["links"] == [{"between": [ONE, TWO], "kind": "nvlink", "level": "NV18", "rank": 28}]
    assert told["answered"] is True


# --- links


def test_ranks_put_the_nearest_first(tmp_path: Path) -> None:
    gpus = [h200(n, links=0) for n in range(7)]
    gpus[6].nvlinks = [gpus[0].uuid]
    gpus[0].nvlinks = [gpus[6].uuid]
    fake = FakeNvml(*gpus)
    levels = {1: pynvml.NVML_TOPOLOGY_SINGLE, 2: pynvml.NVML_TOPOLOGY_MULTIPLE, 3: pynvml.NVML_TOPOLOGY_HOSTBRIDGE}
    levels |= {4: pynvml.NVML_TOPOLOGY_NODE, 5: pynvml.NVML_TOPOLOGY_SYSTEM}
    fake.pcie = {frozenset((ONE, gpus[n].uuid)): there for n, there in levels.items()}
    found = look(fake, tmp_path)
    links = [found.links[frozenset((ONE, gpus[n].uuid))] for n in (6, 1, 2, 3, 4, 5)]
    assert [link.level for link in links] == ["NV1", "PIX", "PXB", "PHB", "NODE", "SYS"]
    assert [link.kind for link in links] == ["nvlink"] + ["pcie"] * 5
    ranks = [link.rank for link in links]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) == 6


def test_through_a_switch_each_reaches_each_with_all_its_links(tmp_path: Path) -> None:
    found = look(FakeNvml(*(h200(n) for n in range(8))), tmp_path)
    assert len(found.links) == 28 and {link.level for link in found.links.values()} == {"NV18"}
    fewer = look(FakeNvml(h200(0), h200(1, links=16)), tmp_path / "fewer")
    assert level(fewer, ONE, TWO) == "NV16"


def test_direct_links_count_for_their_pair_only(tmp_path: Path) -> None:
    a, b, c = h200(0, links=0), h200(1, links=0), h200(2, links=0)
    a.nvlinks, b.nvlinks = [b.uuid] * 4, [a.uuid] * 4
    found = look(FakeNvml(a, b, c), tmp_path)
    assert (level(found, a.uuid, b.uuid), level(found, a.uuid, c.uuid)) == ("NV4", "NODE")


def test_a_virtual_machine_hides_the_switch(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    fake.fail("nvmlDeviceGetNvLinkRemotePciInfo", NotSupported)
    fake.fail("nvmlDeviceGetNvLinkRemoteDeviceType", NotSupported)
    assert level(look(fake, tmp_path), ONE, TWO) == "NV18"


def test_a_link_that_leads_to_a_gpu_of_others_joins_nobody(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0, links=0), h200(1, links=0), h200(2))
    fake.gpus[0].nvlinks = fake.gpus[1].nvlinks = [h200(2).uuid] * 2
    del fake.gpus[2]
    fake._nvmlDeviceGetNvLinkRemotePciInfo = lambda *_: pynvml.nvmlPciInfo_t(domain=0, bus=0x99, device=0)  # type: ignore[method-assign]
    fake._nvmlDeviceGetNvLinkRemoteDeviceType = lambda *_: pynvml.NVML_NVLINK_DEVICE_TYPE_GPU  # type: ignore[method-assign]
    assert level(look(fake, tmp_path), ONE, TWO) == "NODE"


def test_a_pair_that_nothing_is_told_of_is_left_out(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0, links=0), h200(1, links=0))
    fake.fail("nvmlDeviceGetTopologyCommonAncestor", NotSupported)
    found = look(fake, tmp_path)
    assert found.links == {} and len(found.gpus) == 2


@pytest.mark.parametrize("function", ["nvmlDeviceGetNvLinkState", "nvmlDeviceGetNvLinkRemotePciInfo"])
def test_nvlink_queries_that_fail_leave_pcie(tmp_path: Path, function: str) -> None:
    fake = FakeNvml(h200(0), h200(4))
    fake.fail(function, GpuIsLost)
    assert level(look(fake, tmp_path), ONE, h200(4).uuid) == "SYS"


def test_links_are_asked_for_once_while_the_gpus_are_the_same(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1), h200(2))
    nvml, found = watch(fake, tmp_path)
    asked = fake.calls["nvmlDeviceGetNvLinkState"]
    assert nvml.inventory().links == found.links and fake.calls["nvmlDeviceGetNvLinkState"] == asked > 0
    fake.lose(h200(2).uuid)
    assert nvml.inventory().links.keys() == {frozenset((ONE, TWO))}


# --- no driver, no right, no answer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LibraryNotFound, "no NVIDIA driver is installed"),
        (DriverNotLoaded, "not loaded"),
        (NoPermission, "may not open"),
        (FunctionNotFound, "too old"),
        (pynvml.NVMLError_LibRmVersionMismatch, "restart the server"),
        (Unknown, "Unknown Error"),
        (OSError, "OSError"),
    ],
)
def test_without_nvml_there_is_a_plain_reason(tmp_path: Path, error: Error, words: str) -> None:
    nvml, found = watch(FakeNvml.without_driver(error), tmp_path)
    assert (
        found == Inventory(reason=found.reason, answered=False, absent=error is LibraryNotFound)
        and words in found.reason
    )
    assert nvml.wait(9.0) is None
    nvml.close()


def test_the_real_library_without_a_driver_or_with_one() -> None:
    nvml = Nvml()
    found = nvml.inventory()
    nvml.close()
    assert bool(found.gpus) != bool(found.reason)


def test_a_driver_that_comes_later_is_found(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    fake.absent = LibraryNotFound
    nvml, found = watch(fake, tmp_path)
    fake.load()
    assert not found.answered and [gpu.uuid for gpu in nvml.inventory().gpus] == [ONE]


def test_a_driver_that_finds_no_gpu(tmp_path: Path) -> None:
    found = look(FakeNvml(), tmp_path)
    assert found.answered and "finds no GPU" in found.reason and found.driver


def test_a_container_sees_the_gpus_it_was_given(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    fake.gpus[0].missing = {"nvmlDeviceGetHandleByIndex": NoPermission}
    found = look(fake, tmp_path)
    assert ([gpu.uuid for gpu in found.gpus], found.lost, found.reason) == ([TWO], (), "")
    fake.gpus[1].missing = dict(fake.gpus[0].missing)
    found = Nvml(fake, tmp_path).inventory()
    assert found.gpus == () and found.lost == () and "may not open" in found.reason


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetCount",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetPowerUsage",
        "nvmlSystemGetDriverVersion",
    ],
)
def test_a_driver_that_goes_in_the_middle_is_no_lost_gpu(tmp_path: Path, function: str) -> None:
    fake = FakeNvml(h200(0), h200(1))
    nvml, _ = watch(fake, tmp_path)
    fake.fail(function, pynvml.NVMLError_Uninitialized, times=1)
    found = nvml.inventory()
    assert (found.gpus, found.lost, found.answered) == ((), (), False) and found.reason
    assert len(nvml.inventory().gpus) == 2


def test_a_driver_that_is_restarted(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    nvml, _ = watch(fake, tmp_path)
    fake.unload()
    assert nvml.wait(1.0) is None
    assert nvml.inventory().answered is False
    fake.load()
    assert len(nvml.inventory().gpus) == 2
    assert fake.emit(TWO, "xid", 31) and nvml.wait(1.0) == Event(TWO, "xid", 31)


# --- lost


@pytest.mark.parametrize("error", [GpuIsLost, Unknown, pynvml.NVMLError_IrqIssue, FunctionNotFound])
def test_a_gpu_without_a_handle_is_lost(tmp_path: Path, error: Error) -> None:
    fake = FakeNvml(h200(0), h200(1))
    fake.gpus[0].missing = {"nvmlDeviceGetHandleByIndex": error}
    found = look(fake, tmp_path)
    assert ([gpu.uuid for gpu in found.gpus], found.lost) == ([TWO], ("GPU 0",))


def test_a_gpu_without_a_uuid_is_named_by_its_place(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    fake.fail("nvmlDeviceGetUUID", Unknown, uuid=TWO)
    nvml, found = watch(fake, tmp_path)
    assert found.lost == ("GPU 1 (0000:11:00.0)",)
    fake.mend("nvmlDeviceGetUUID")
    assert nvml.inventory().lost == ()
    fake.fail("nvmlDeviceGetUUID", Unknown, uuid=TWO)
    assert nvml.inventory().lost == (TWO,)


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetPciInfo", "nvmlDeviceGetUUID", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetName"]
)
def test_a_gpu_that_is_lost_at_any_query_is_told_by_its_uuid(tmp_path: Path, function: str) -> None:
    fake = FakeNvml(h200(0), h200(1))
    nvml, _ = watch(fake, tmp_path)
    fake.fail(function, GpuIsLost, uuid=ONE)
    found = nvml.inventory()
    assert ([gpu.uuid for gpu in found.gpus], found.lost, found.reason) == ([TWO], (ONE,), "")


def test_when_all_are_lost_the_reason_does_not_speak_of_the_cpu(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    nvml, _ = watch(fake, tmp_path)
    fake.lose(ONE)
    found = nvml.inventory()
    assert (
        found.answered and found.lost == (ONE,) and "restart the server" in found.reason and "CPU" not in found.reason
    )


def test_a_lost_mig_gpu_takes_its_instances(tmp_path: Path) -> None:
    fake = FakeNvml(a100_mig(0), h200(1))
    nvml, _ = watch(fake, tmp_path)
    fake.lose("MIG-a100-0-0")
    found = nvml.inventory()
    assert ([gpu.uuid for gpu in found.gpus], found.lost) == ([TWO], ("GPU-a100-0",))


def test_numbers_that_move_up_do_not_name_the_wrong_gpu(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1), h200(2))
    nvml, _ = watch(fake, tmp_path)
    fake.lose(ONE, listed=False)
    fake.gpus[1].missing = {
        "nvmlDeviceGetHandleByIndex": Unknown
    }  # the third GPU is number 1 now, which the second was
    found = nvml.inventory()
    assert ([gpu.uuid for gpu in found.gpus], found.lost) == ([TWO], ("GPU 1",))


# --- events


@pytest.mark.parametrize(("kind", "code"), [("xid", 79), ("xid", 31), ("ecc", 0), ("unavailable", 0)])
def test_events_come_with_their_gpu(tmp_path: Path, kind: str, code: int) -> None:
    fake = FakeNvml(h200(0), h200(1))
    nvml, _ = watch(fake, tmp_path)
    assert fake.emit(TWO, kind, code)
    assert nvml.wait(1.0) == Event(TWO, kind, code)
    assert nvml.wait(1.0) is None


def test_a_recovery_event_and_xid_154_say_what_the_driver_asks_for(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    nvml, _ = watch(fake, tmp_path)
    fake.emit(ONE, "recovery", 4)
    assert nvml.wait(1.0) == Event(ONE, "recovery", RECOVERY.index("drain_and_reset"))
    fake.gpus[0].recovery = 0
    fake.emit(ONE, "xid", 154)
    assert nvml.wait(1.0) == Event(ONE, "recovery", 0)
    fake.fail("nvmlDeviceGetFieldValues", NotSupported)
    fake.emit(ONE, "xid", 154)
    assert nvml.wait(1.0) == Event(ONE, "recovery", -1)
    fake.fail("nvmlDeviceGetFieldValues", GpuIsLost)
    fake.emit(ONE, "xid", 154)
    assert nvml.wait(1.0) == Event(ONE, "lost", 0)


def test_a_mig_event_names_the_instance_where_the_driver_does(tmp_path: Path) -> None:
    fake = FakeNvml(a100_mig(0))
    nvml, _ = watch(fake, tmp_path)
    fake.emit("MIG-a100-0-1", "xid", 94)
    fake.emit("GPU-a100-0", "xid", 95)
    assert [nvml.wait(1.0), nvml.wait(1.0)] == [Event("MIG-a100-0-1", "xid", 94), Event("GPU-a100-0", "xid", 95)]
    fake.gpus[0].migs = [FakeMig("MIG-new", (5, 0))]
    nvml.inventory()
    fake.emit("MIG-new", "xid", 94)
    assert nvml.wait(1.0) == Event("MIG-new", "xid", 94)


def test_a_lost_gpus_last_words_still_have_its_name(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    nvml, _ = watch(fake, tmp_path)
    fake.emit(TWO, "xid", 79)
    fake.lose(TWO)
    assert nvml.wait(1.0) == Event(TWO, "xid", 79)


def test_a_lost_gpu_is_an_event_and_the_others_are_watched_on(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    nvml, _ = watch(fake, tmp_path)
    fake.lose(TWO)
    assert nvml.wait(1.0) == Event(TWO, "lost", 0)
    assert nvml.wait(1.0) is None and not fake.emit(ONE, "xid", 13)
    nvml.inventory()
    assert fake.emit(ONE, "xid", 13) and nvml.wait(1.0) == Event(ONE, "xid", 13)


def test_an_error_that_is_nobodys_fault_arms_the_events_again(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    nvml, _ = watch(fake, tmp_path)
    fake.fail("nvmlEventSetWait", Unknown, times=1)
    assert nvml.wait(1.0) is None
    nvml.inventory()
    assert fake.calls["nvmlEventSetCreate"] == 2 and fake.calls["nvmlEventSetFree"] == 1
    assert fake.emit(ONE, "ecc") and nvml.wait(1.0) == Event(ONE, "ecc", 0)


def test_a_gpu_that_refuses_new_kinds_of_events_gives_the_old_ones(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    fake.fail("nvmlDeviceRegisterEvents", NotSupported, times=1)
    nvml, _ = watch(fake, tmp_path)
    uuids = {ONE: fake.emit(ONE, "recovery", 1), TWO: fake.emit(TWO, "recovery", 1)}
    assert sorted(uuids.values()) == [False, True]
    assert fake.emit(ONE, "xid", 48) and fake.emit(TWO, "xid", 48)


def test_a_gpu_without_events_is_tried_again_and_does_not_hold_up_the_others(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    fake.fail("nvmlDeviceRegisterEvents", NotSupported, uuid=TWO)
    nvml, _ = watch(fake, tmp_path)
    assert fake.emit(ONE, "xid", 13) and not fake.emit(TWO, "xid", 13)
    fake.mend("nvmlDeviceRegisterEvents")
    nvml.inventory()
    assert fake.emit(TWO, "xid", 13)
    assert [nvml.wait(1.0), nvml.wait(1.0)] == [Event(ONE, "xid", 13), Event(TWO, "xid", 13)]


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_without_events_there_is_still_an_inventory(tmp_path: Path, function: str) -> None:
    fake = FakeNvml(h200(0))
    fake.fail(function, Unknown)
    nvml, found = watch(fake, tmp_path)
    assert len(found.gpus) == 1 and nvml.wait(1.0) is None and fake.calls["nvmlEventSetWait"] == 0


def test_events_of_no_interest_or_of_nobody_are_passed_over(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    nvml, _ = watch(fake, tmp_path)
    fake.emit(ONE, "xid", 13)
    fake.gpus.remove(fake.gpus[0])  # the event has no device any more
    assert nvml.wait(1.0) is None


def test_close_gives_everything_back_and_the_next_inventory_starts_again(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    nvml, _ = watch(fake, tmp_path)
    fake.fail("nvmlShutdown", Unknown)
    nvml.close()
    nvml.close()
    assert fake.calls["nvmlShutdown"] == 1 and fake.calls["nvmlEventSetFree"] == 1
    assert len(nvml.inventory().gpus) == 1 and fake.calls["nvmlInit"] == 2


# --- small things


@pytest.mark.parametrize(("number", "text"), [(13010, "13.1"), (12080, "12.8"), (11000, "11.0"), (None, ""), (0, "")])
def test_cuda_versions(number: int | None, text: str) -> None:
    assert cuda_version(number) == text


def test_pci_addresses_are_those_of_sysfs() -> None:
    assert pci_address(pynvml.nvmlPciInfo_t(domain=0x10000, bus=0xAB, device=0x1F)) == "10000:ab:1f.0"
    assert pci_address(pynvml.nvmlPciInfo_t(domain=0, bus=1, device=0)) == "0000:01:00.0"


def test_the_fake_has_a_switch_and_knows_pynvmls_functions_only() -> None:
    assert h200(0).nvlinks == [SWITCH] * 18
    with pytest.raises(AssertionError):
        _ = FakeNvml().nvmlDeviceGetWeather
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        FakeNvml().nvmlDeviceGetCount()
