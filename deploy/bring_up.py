"""Bringing a cluster up on Ray and taking it down: what needs to be a Ray program itself.

All else is asked of the controller, over gRPC. Every step finds what an earlier one left.
"""

import asyncio
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ModelError, PeerLost
from core.paths import user_state_dir
from deploy.actors import READY_TIMEOUT_S, ServiceActor, StartFailed
from deploy.check_model import check_model
from deploy.controller.deployment import Deployment
from deploy.controller.process import ControllerSpec
from deploy.controller.ray_hands import FREE_CALLS, namespace_of
from deploy.local_ray.background import start_local_ray, stop_local_ray
from deploy.log_files import remove_logs
from deploy.memory import available_memory_bytes, check_memory, cluster_bytes
from deploy.ray_runtime import joined_ray
from deploy.store import StoreSpec
from registry.connect import check_store_at
from registry.home import ValkeyHome

if TYPE_CHECKING:
    from ray import ObjectRef

logger = logging.getLogger(__name__)

STORE, CONTROLLER = "store", "controller"
LOCAL_CPUS = 1024
"""A Ray of our own counts nothing for us: what fits this machine is a question of its memory."""
CALL_TIMEOUT_S = 30.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a cluster is to stand."""

    name: str = "baton"
    ray_address: str = ""
    """host:port of a Ray that runs already; empty: one of our own, on this machine."""
    registry_url: str = ""
    """Empty: a store of our own."""
    num_gpus: int = 0
    """Of this machine, for a Ray of our own."""
    log_level: str = "WARNING"
    log_format: str = "text"

    @property
    def folder(self) -> Path:
        """What this machine keeps of it."""
        return user_state_dir() / "clusters" / self.name

    @property
    def ray_folder(self) -> Path:
        """Of a Ray of our own."""
        return self.folder / "ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A controller that serves, and how to find it."""

    registry_url: str
    controller: str
    ray_address: str


async def prepare(deployment: Deployment) -> None:
    """Raise what a cluster on this machine alone would die of, before anything is started."""
    model_dir, plan = Path(deployment.model), deployment.plan
    if not (model_dir / "config.json").is_file():
        raise ModelError(f"{model_dir}: no config.json, so not a model directory")
    await check_model(model_dir, layouts=plan.layouts)


def check_room(deployment: Deployment) -> None:
    """Raise TooLittleMemory when this machine cannot hold all of it."""
    needed_bytes = cluster_bytes(deployment.plan, deployment.config.engine, Path(deployment.model))
    check_memory(needed_bytes, available_memory_bytes())


async def lay_ground(site: Site, on_progress: Progress) -> Ground:
    """Ray, store and controller, as far as they are not there; the plan comes later.

    Raises a BatonError with what did not start.
    """
    if site.registry_url:
        await check_store_at(site.registry_url, site.name)
    token = None
    ray_address = site.ray_address
    if not ray_address:
        on_progress("starting Ray")
        door = await start_local_ray(site.ray_folder, num_cpus=LOCAL_CPUS, num_gpus=site.num_gpus)
        ray_address, token = door.address, door.token
    on_progress("joining Ray")
    with joined_ray(ray_address, token, namespace_of(site.name)) as ray:
        actors = _Actors(ray, site)
        url = site.registry_url
        if not url:
            on_progress("starting the store")
            url = await actors.store()
        on_progress("starting the controller")
        controller = await actors.controller(url)
    return Ground(registry_url=url, controller=controller, ray_address=ray_address)


async def clear_ground(site: Site) -> None:
    """End what is left of a cluster whose controller has ended it, and what Ray holds for it."""
    if not site.ray_address:
        await stop_local_ray(site.ray_folder)
        remove_logs(site.name)
    else:
        await _clear_ray(site)
    shutil.rmtree(site.folder, ignore_errors=True)


async def _clear_ray(site: Site) -> None:
    with joined_ray(site.ray_address, None, namespace_of(site.name)) as ray:
        await asyncio.to_thread(_clear, ray, site.name)


class _Actors:
    """The two that every cluster has, found or made."""

    def __init__(self, ray: Any, site: Site) -> None:  # noqa: ANN401 - the module
        self._ray, self._site = ray, site
        # A driver is always on one of Ray's hosts: both stay beside the files that they keep.
        self._host = str(ray.util.get_node_ip_address())

    async def store(self) -> str:
        """URL of the cluster's own store, once it serves."""
        home = ValkeyHome.new(self._site.folder / "store", self._host)
        spec = StoreSpec(folder=home.folder, port=home.port, password=home.password, host="")
        actor = self._actor(STORE, spec.to_json(), {"url": home.url})
        await self._answer(actor.address.remote(), READY_TIMEOUT_S)
        # One that was there has another password than we would have given it.
        about_json, _ = await self._answer(actor.about.remote(), CALL_TIMEOUT_S)
        return str(json.loads(about_json)["url"])

    async def controller(self, registry_url: str) -> str:
        """host:port of the controller, once it leads."""
        spec = ControllerSpec(
            cluster=self._site.name,
            registry_url=registry_url,
            folder=self._site.folder / "controller",
            host="",
        )
        actor = self._actor(CONTROLLER, spec.to_json(), {})
        return str(await self._answer(actor.address.remote(), READY_TIMEOUT_S))

    def _actor(self, name: str, spec_json: str, about: dict[str, str]) -> Any:  # noqa: ANN401
        return (
            self._ray.remote(ServiceActor)
            .options(
                name=name,
                namespace=namespace_of(self._site.name),
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                # Calls that meet a restart wait for it.
                max_task_retries=-1,
                max_concurrency=FREE_CALLS,
                num_cpus=0,
                resources={f"node:{self._host}": 0.001},
            )
            .remote(
                name,
                name,
                spec_json,
                self._site.log_level,
                self._site.log_format,
                json.dumps(about),
                f"{self._site.name}/{name}",
            )
        )

    async def _answer(self, reference: "ObjectRef[Any]", timeout_s: float) -> Any:  # noqa: ANN401
        errors = self._ray.exceptions
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(reference.future())
        except errors.RayTaskError as error:
            raise StartFailed(str(error.cause)) from None
        except (TimeoutError, errors.RayError) as error:
            raise PeerLost(f"no answer from Ray: {type(error).__name__}: {error}") from error


def _clear(ray: Any, name: str) -> None:  # noqa: ANN401 - the module
    """Everything in the cluster's namespace, and its logs on every host."""
    from ray.util.placement_group import (
        get_placement_group,
        placement_group_table,
        remove_placement_group,
    )

    namespace = namespace_of(name)
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == namespace:
            ray.kill(ray.get_actor(actor["name"], namespace=namespace), no_restart=True)
    for group in placement_group_table().values():
        if group["name"].startswith(f"{namespace}/") and group["state"] != "REMOVED":
            remove_placement_group(get_placement_group(group["name"]))
    task = ray.remote(remove_logs)
    hosts = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    options = [{"num_cpus": 0, "resources": {f"node:{host}": 0.001}} for host in hosts]
    calls = [task.options(**option).remote(name) for option in options]
    done, late = ray.wait(calls, num_returns=len(calls) or 1, timeout=CALL_TIMEOUT_S)
    if late:
        logger.warning("logs of %s remain on %d of %d hosts", name, len(late), len(calls))
    ray.get(done)
