"""The executor: runs the installed ClientApp, warm, for the tasks of the local SuperNode. A process of its own.

Started by the supervisor as `python -P -m participant.executor --home HOME --runtime HOST:PORT`. For ever:

1. Claim a task at the SuperNode's Runtime API, with the secret that the two share.
2. Look at the task's bundle hash before anything else. One that the site's policy does not list is answered with an
   error; a bundle's code is never unpacked, imported or run, listed or not.
3. Call the installed app, import path `participant.client_app:app`, in this process: model code and compiled kernels
   stay loaded from task to task.
4. Push its reply. When the app raises, the reply names the exception's class and nothing else: its text may hold
   what was computed from records, and the reply leaves the site. The text goes to the local log.

This is the only file on the participant's side that uses private interfaces of Flower (1.41); its test runs the real
classes against a real SuperNode.
"""

import argparse
import hashlib
import importlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from participant.errors import ParticipantError
from participant.health import PulseFile
from participant.policy import load_policy

logger = logging.getLogger(__name__)

APP = "participant.client_app:app"
ACQUIRE_TASK = "/flwr.proto.Runtime/AcquireTask"
POLL_SECONDS = 0.1
"""Between two questions for a task while the SuperNode answers. One costs executor and SuperNode together at most 4 ms
of CPU (measured at 50 ms, SuperNode's other work included: 8.5 % of a core), against rounds of seconds."""
LONGEST_WAIT_SECONDS = 5.0
"""Between two questions while it does not."""
PUSH_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended."""

    reply: Message
    status: str
    details: str


class Executor:
    """Serves the tasks of one SuperNode."""

    def __init__(
        self,
        *,
        app: ClientApp,
        runtime_address: str,
        secret: bytes,
        allowed_bundles: Callable[[], frozenset[str]],
        pulse: PulseFile,
    ) -> None:
        """Prepares the executor.

        Args:
            app: what runs.
            runtime_address: "host:port" of the SuperNode's Runtime API, on loopback.
            secret: shared with that SuperNode.
            allowed_bundles: SHA-256 values, in hex, that the policy lists now; read anew for every task.
            pulse: where to say what is going on.
        """
        self._app = app
        self._address = runtime_address
        self._allowed_bundles = allowed_bundles
        self._pulse = pulse
        self._claims = self._client(
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods=frozenset({ACQUIRE_TASK})
            )
        )

    def close(self) -> None:
        """Closes the connection to the SuperNode."""
        self._claims.close()

    def serve(self) -> None:
        """Polls and runs tasks for ever; a SuperNode that is away is waited for."""
        wait = POLL_SECONDS
        while True:
            try:
                self.serve_one()
                wait = POLL_SECONDS
            except httpx.HTTPError as error:
                self._pulse.beat("waiting")
                if wait == POLL_SECONDS:
                    logger.warning("The SuperNode does not answer: %s", error)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            time.sleep(wait)

    def serve_one(self) -> bool:
        """Claims and runs one task; False if there was none.

        Raises:
            httpx.HTTPError: the SuperNode is away or refuses, now or before the reply was pushed.
        """
        claim = self._claims.AcquireTask(
            AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        )
        self._pulse.beat("idle")
        if not claim.token:
            return False
        with self._pulse.busy():
            self._run(claim.task.task_id, claim.task.fab_hash, claim.token)
        self._pulse.beat("idle")
        return True

    def _run(self, task_id: int, bundle: str, token: str) -> None:
        started = time.monotonic()
        refusal = self._refusal(bundle)
        client = self._client(RuntimeTokenHttpInterceptor(token), tries=PUSH_TRIES)
        heartbeat = HeartbeatSender(_task_heartbeat(client, task_id))
        heartbeat.start()
        try:
            message, context, _, fab = pull_task_input(client)
            if refusal is None and hashlib.sha256(fab.content).hexdigest() != bundle:
                refusal = "The bundle is not the one its hash names."
            outcome = (
                self._call(message, context) if refusal is None else _refused(message, refusal)
            )
            push_message(client, outcome.reply, context)
            push_task_output(
                client=client, context=context, sub_status=outcome.status, details=outcome.details
            )
        finally:
            if heartbeat.is_running:
                heartbeat.stop()
            client.close()
        logger.info("Task %d: %s in %.2f s.", task_id, outcome.status, time.monotonic() - started)

    def _refusal(self, bundle: str) -> str | None:
        try:
            allowed = self._allowed_bundles()
        except ParticipantError:
            logger.exception("The policy cannot be read; the task is refused.")
            return "The site's policy cannot be read. Its administrator must mend policy.toml."
        if bundle in allowed:
            return None
        logger.warning("Refused bundle %s: policy.toml does not list it.", bundle)
        return f'Bundle {bundle[:12]} is not listed in clause "bundles" of the site\'s policy.'

    def _call(self, message: Message, context: Context) -> Outcome:
        try:
            reply = self._app(message=message, context=context)
            if not isinstance(reply, Message):
                raise TypeError(f"The app returned {type(reply).__name__}, not a Message.")
        except Exception as error:  # the edge of the app: whatever it raises must become a reply
            logger.error(
                "The task ended with an error; this site's part in it is over.", exc_info=error
            )
            text = f"{type(error).__name__} at the site; its log says more."
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Outcome(
                reply=Message(Error(code=code, reason=text), reply_to=message),
                status=SubStatus.FAILED,
                details=text,
            )
        return Outcome(reply=reply, status=SubStatus.COMPLETED, details="")

    def _client(
        self, interceptor: ProtobufClientInterceptor, *, tries: int = 1
    ) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,  # loopback; claims are authenticated by the secret, tasks by their token
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), interceptor],
            # Not Flower's own invoker: on 401 that one interrupts this process.
            retry_invoker=RetryInvoker(
                lambda: constant(1.0), httpx.TransportError, max_tries=tries, max_time=None
            ),
        )


def load_app(path: str) -> ClientApp:
    """The ClientApp at an import path `module:name` of the installed packages.

    Raises:
        ImportError: there is no such module.
        TypeError: there is no ClientApp of that name in it.
    """
    module, _, name = path.partition(":")
    app = getattr(importlib.import_module(module), name, None)
    if not isinstance(app, ClientApp):
        raise TypeError(f'Expected "{path}" to be a ClientApp, found {type(app).__name__}.')
    return app


def _refused(message: Message, reason: str) -> Outcome:
    return Outcome(
        reply=Message(Error(code=ErrorCode.INVALID_FAB, reason=reason), reply_to=message),
        status=SubStatus.FAILED,
        details=reason,
    )


def _task_heartbeat(client: RuntimeHttpClient, task_id: int) -> Callable[[], bool]:
    """Flower's own version interrupts the whole process when a task has expired; this one lets it end."""

    def beat() -> bool:
        try:
            if not client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                logger.warning(
                    "Task %d has expired at the SuperNode; its reply will be lost.", task_id
                )
        except httpx.TransportError:
            return False
        except httpx.HTTPStatusError as error:
            logger.warning(
                "Task %d: heartbeat refused with status %d.", task_id, error.response.status_code
            )
        return True

    return beat


def main() -> None:
    """Command line of the executor process."""
    parser = argparse.ArgumentParser(prog="participant.executor", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="site folder")
    parser.add_argument("--runtime", required=True, help="host:port of the SuperNode's Runtime API")
    parser.add_argument("--app", default=APP, help="import path of the ClientApp")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        force=True,  # a library may have set handlers when it was imported
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every poll
    home = arguments.home
    executor = Executor(
        app=load_app(arguments.app),
        runtime_address=arguments.runtime,
        secret=(home / "superexec.secret").read_bytes(),
        allowed_bundles=lambda: frozenset(load_policy(home).bundles),
        pulse=PulseFile(home / "flower" / "executor.json"),
    )
    logger.info("Ready: %s", arguments.app)
    executor.serve()


if __name__ == "__main__":
    main()
