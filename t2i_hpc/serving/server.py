"""Runs the page: loads the run, binds the port, prints the address, answers until Ctrl-C."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import secrets
import socket
import sys

import torch
import uvicorn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import ServeConfig
from t2i_hpc.sampling.loading import load_run
from t2i_hpc.serving.app import Application
from t2i_hpc.serving.served_run import ServedRun
from t2i_hpc.training.world import choose_device


def run_server(config: ServeConfig) -> None:
    """Serve a run until Ctrl-C.

    Raises:
        ConfigurationError: the address cannot be listened on.
        UserError: the run cannot be opened.
    """
    logging.basicConfig(format="%(message)s")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    listening = _listen(config.host, config.port)  # before the seconds of loading
    device = choose_device(config.device)
    trained = load_run(config.run, config.checkpoint, device=device, data=config.data.path)
    token = "" if config.token == "none" else config.token or secrets.token_urlsafe(16)
    application = Application(ServedRun(trained, config.most_images), token, config.most_waiting)
    say(f"{trained.run.name} after {trained.images_seen:,} training images, on {device}")
    for line in _addresses(config.host, listening.getsockname()[1], token):
        say(line)
    settings = uvicorn.Config(application.asgi(), log_level="warning", server_header=False)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # how one ends it
            uvicorn.Server(settings).run(sockets=[listening])
    finally:
        application.close()
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): port=0 takes any free "
            "one, host=127.0.0.1 is this machine"
        ) from error


def _addresses(host: str, port: int, token: str) -> list[str]:
    """Return what a person needs to open the page."""
    query = f"/?token={token}" if token else "/"
    name = f"[{host}]" if ":" in host else host
    here = name if _is_local(host) else socket.gethostname()
    lines = [f"open http://{here}:{port}{query}"]
    if _is_local(host):
        tunnel = f"ssh -N -L {port}:{name}:{port} {socket.gethostname()}"
        lines.append(f"from another machine first: {tunnel}")
    if not token and not _is_local(host):
        say("token=none: whoever reaches this machine can use the page", sys.stderr)
    return [*lines, "Ctrl-C ends it"]


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
