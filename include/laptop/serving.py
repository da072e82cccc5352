"""The serving side's services on this machine, and how each is probed.

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
class SupervisedService:
    """A service that the keeper starts again when it dies or hangs.

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
        """Return whether it answers within `timeout` seconds that it is alive."""
        try:
            with _OPENER.open(self.health, timeout=timeout) as answer:
                return answer.status == 200
        except (OSError, URLError, http.client.HTTPException):
            return False


def supervised_services() -> list[SupervisedService]:
    """Return Triton, router and canary controller, in the order of their start."""
    ports, folder = serving_ports(), str(serving_folder())
    triton_http, admin = f"http://127.0.0.1:{ports['triton_http']}", f"http://127.0.0.1:{ports['router_admin']}"
    triton = ["jobs.serving.triton", "--folder", folder, "--http-port", str(ports["triton_http"])]
    triton += ["--grpc-port", str(ports["triton_grpc"]), "--metrics-port", str(ports["triton_metrics"])]
    router = ["jobs.serving.router", "--folder", folder, "--port", str(ports["router"])]
    router += ["--admin-port", str(ports["router_admin"]), "--triton", triton_http]
    controller = ["jobs.serving.canary", "serve", "--folder", folder, "--port", str(ports["controller"])]
    controller += ["--router", admin, "--triton", f"127.0.0.1:{ports['triton_grpc']}"]
    controller += ["--store", f"file://{home()}/store"]
    return [
        _supervised("triton", triton, f"{triton_http}/v2/health/live"),
        _supervised("router", router, f"{router_url()}/v2/health/live"),
        _supervised("controller", controller, f"{controller_url()}/health"),
    ]


def router_url() -> str:
    """Return the URL for clients."""
    return f"http://127.0.0.1:{serving_ports()['router']}"


def controller_url() -> str:
    """Return the URL of the canary controller's API."""
    return f"http://127.0.0.1:{serving_ports()['controller']}"


def keeper() -> Service:
    """Return the service that supervises the others."""
    return Service(run_folder(), "keeper")


def traffic() -> Service:
    """Return the traffic generator, which runs only on request."""
    return Service(run_folder(), "traffic")


def token() -> str:
    """Return the bearer token of the router's admin API and of the controller's, made on first use."""
    path = serving_folder() / "token"
    if not path.is_file():
        write_private(path, secrets.token_urlsafe(32))
    return path.read_text().strip()


def _supervised(name: str, arguments: list[str], health: str) -> SupervisedService:
    command = (str(python_of("serving")), "-m", *arguments)
    return SupervisedService(Service(run_folder(), name), command, health)
