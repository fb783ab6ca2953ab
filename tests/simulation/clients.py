"""What clients get of the simulated router: each position once, up to the stop string."""

from typing import TYPE_CHECKING

from core.lifecycle import TERMINAL, Event
from tests.simulation.requests import Request
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.router_model import Router


class Clients:
    """Delivers tokens in order, and finds stop strings a little after their tokens."""

    def __init__(self, router: "Router", world: World) -> None:
        self._router = router
        self._world = world

    def deliver(self, request: Request, first: int, tokens: tuple[int, ...]) -> None:
        """Tokens from position `first` on: new ones go out, known ones do not."""
        num_known = len(request.delivered) - first
        if num_known < 0 or request.state in TERMINAL:
            return  # a gap: an earlier message is still under way
        for token in tokens[num_known:]:
            if len(request.delivered) == request.spec.num_wanted_tokens:
                return
            self._world.checks.delivered(request.spec, request.delivered, token)
            request.delivered.append(token)
            self.find_stop_string(request)

    def find_stop_string(self, request: Request) -> None:
        """Text lags behind tokens: the end is noticed a little later."""
        spec, delay = request.spec, self._world.ticks(1, 24)
        if len(request.delivered) == spec.num_wanted_tokens < spec.num_output_tokens:
            self._world.after(delay, self._router.happen, request, Event.STOPPED)
