"""The planner as the controller uses it: on a deployment's own machines, from recent requests."""

from pathlib import Path
from typing import Protocol

from core.plan import Plan
from deploy.controller.deployment import Deployment
from deploy.model_source import resolve_model
from planner.ask.gpus import GpuAsk, fleet_of
from planner.ask.latency import Latency, Times
from planner.ask.model import find_model
from planner.online.ground import Ground, Sizes
from planner.online.history import history_of
from planner.online.online import Decision, Online, Watching
from planner.online.replan import Bounds, Replan, replan
from planner.online.window import Recent
from planner.search.fleet import Rules


class Watch(Protocol):
    """Looks at what was served, again and again."""

    def look(self, now_s: float, recent: Recent, in_force: Sizes) -> Decision:
        """What is to be done, if anything; may take seconds."""
        ...


class Planner(Protocol):
    """Both take seconds, and raise ConfigError or NoProfile where nothing is known to plan with."""

    def watch(self, deployment: Deployment) -> Watch:
        """A new one, that has seen nothing yet."""
        ...

    def replan(self, deployment: Deployment, recent: Recent, in_force: Sizes) -> Replan:
        """The plan that suits what was served, whatever has shifted."""
        ...


class OwnPlanner:
    """Ours, in this process. Limits are those of the plan that a person wrote."""

    def __init__(self, folder: Path) -> None:
        """For the profile, which the planner reads from a file."""
        self._folder = folder

    def watch(self, deployment: Deployment) -> Watch:
        """See Planner."""
        plan = deployment.plan
        return Online(self._ground(deployment), Bounds.of(plan), watching=watching_of(plan))

    def replan(self, deployment: Deployment, recent: Recent, in_force: Sizes) -> Replan:
        """See Planner."""
        ground = self._ground(deployment)
        history = history_of(recent, slo=ground.slo, target=ground.target)
        return replan(ground, history, in_force, Bounds.of(deployment.plan))

    def _ground(self, deployment: Deployment) -> Ground:
        plan, config = deployment.plan, deployment.config
        profile = self._profile(deployment)
        times = Times(
            latency=Latency.ROOFLINE if profile is None else Latency.MEASURED,
            profile=profile,
            num_blocks=config.engine.num_blocks,
            step_tokens=config.worker.prefill_step_tokens,
        )
        rules = Rules(
            max_batch=config.worker.max_running,
            step_tokens=config.worker.prefill_step_tokens,
            chunk_tokens=config.worker.mixed_step_tokens,
            placement=config.router.policy,
        )
        gpus = GpuAsk(kinds=(plan.online.gpu,) if plan.online.gpu else ())
        model = find_model(str(resolve_model(deployment.model)))
        return Ground.of(fleet_of(gpus, times, model, rules), plan)

    def _profile(self, deployment: Deployment) -> Path | None:
        if deployment.plan.online.gpu or not deployment.profile_json:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "profile.json"
        path.write_text(deployment.profile_json, encoding="utf-8")
        return path


def watching_of(plan: Plan) -> Watching:
    """How long to look before something is done."""
    return Watching(window_s=plan.online.window_s, cool_down_s=plan.online.cool_down_s)
