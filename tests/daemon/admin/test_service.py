"""What an admin asks for that this machine cannot give."""

import pytest
import small_models

from llmd.daemon.composition import Daemon
from llmd.daemon.errors import Unavailable
from llmd.daemon.machine import memory
from llmd.daemon.state.records import Info
from llmd.quantize.shape import Layer, Shape

SHAPE = Shape("llama", 4096, 260, 32, (Layer(k=1024, v=1024),), file=1 << 30).to_dict()


async def test_a_deployment_that_cannot_be_made_any_more_keeps_no_other_from_starting(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        small_models.stored(daemon.config.state / "models", name * 64, 1 << 20)
        daemon.store.add_model(name, name * 64, 1 << 20, "m.gguf", Info(context_length=4096))
        placement = {"form": "Q9_9"} if name == "a" else {}
        daemon.store.set_deployment(name, None, None, placement, 1)
    daemon.store.set_evicted("c", "b")
    daemon.service.deployments.restore()
    assert [d.model for d in daemon.pool.all()] == ["b"] and [d.model for d in daemon.pool.away()] == ["c"]
    assert "a is not started" in caplog.text and "deploy it again" in caplog.text
    await daemon.pool.undeploy("b")


async def test_a_model_that_memory_does_not_hold_changes_nothing(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1 << 29)
    small_models.stored(daemon.config.state / "models", "0" * 64, 1 << 30)
    daemon.store.add_model("m", "0" * 64, 1 << 30, "m.gguf", Info(context_length=4096, shape=SHAPE))
    with pytest.raises(Unavailable, match=r"weights 1\.0.* 0\.5 GiB are free"):
        await daemon.service.deployments.deploy("m", "me")
    assert daemon.store.deployments() == [] and daemon.pool.all() == []
    shown = await daemon.service.show("m")
    assert shown["info"]["context_length"] == 4096 and not {"shape", "tried"} & shown["info"].keys()
