"""The serving side as services of this machine: which there are, and how each shows that it is alive.

Standard library only: the keeper and `make down` work without any environment.
"""

from __future__ import annotations

import http.client
import secrets
from dataclasses import dataclass
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from include.home import home, serving_ports
from include.laptop.home import python_of, run_folder, serving_folder, write_private
from include.laptop.services import Service

_OPENER = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Kept:
    """A service that has to run for as long as Anemone is up.

    Attributes:
        command: becomes the service. `health`: a URL that answers 200 while it is alive.
    """

    service: Service
    command: tuple[str, ...]
    health: str

    @property
    def name(self) -> str:
        return self.service.name

    def answers(self, timeout: float) -> bool:
        """Whether it says within `timeout` seconds that it is alive."""
        try:
            with _OPENER.open(self.health, timeout=timeout) as answer:
                return answer.status == 200
        except (OSError, URLError, http.client.HTTPException):
            return False


def kept_services() -> list[Kept]:
    """Triton, router and canary controller, in the order of their start."""
    ports, folder = serving_ports(), str(serving_folder())
    triton_http, admin = f"http://127.0.0.1:{ports['triton_http']}", f"http://127.0.0.1:{ports['router_admin']}"
    triton = ("jobs.serving.triton", "--folder", folder, "--http-port", str(ports["triton_http"]))
    triton += ("--grpc-port", str(ports["triton_grpc"]), "--metrics-port", str(ports["triton_metrics"]))
    router = ("jobs.serving.router", "--folder", folder, "--port", str(ports["router"]))
    router += ("--admin-port", str(ports["router_admin"]), "--triton", triton_http)
    controller = ("jobs.serving.canary", "serve", "--folder", folder, "--port", str(ports["controller"]))
    controller += ("--router", admin, "--triton", f"127.0.0.1:{ports['triton_grpc']}")
    controller += ("--store", f"file://{home()}/store")
    return [
        _kept("triton", triton, f"{triton_http}/v2/health/live"),
        _kept("router", router, f"{router_url()}/v2/health/live"),
        _kept("controller", controller, f"{controller_url()}/health"),
    ]


def router_url() -> str:
    """What clients talk to."""
    return f"http://127.0.0.1:{serving_ports()['router']}"


def controller_url() -> str:
    """The canary controller's API."""
    return f"http://127.0.0.1:{serving_ports()['controller']}"


def keeper() -> Service:
    """What starts those again that die."""
    return Service(run_folder(), "keeper")


def traffic() -> Service:
    """The traffic generator; it runs only where it is asked for."""
    return Service(run_folder(), "traffic")


def token() -> str:
    """The bearer token of the router's admin API and of the controller's; made on first use."""
    path = serving_folder() / "token"
    if not path.is_file():
        write_private(path, secrets.token_urlsafe(32))
    return path.read_text().strip()


def _kept(name: str, arguments: tuple[str, ...], health: str) -> Kept:
    return Kept(Service(run_folder(), name), (str(python_of("serving")), "-m", *arguments), health)
