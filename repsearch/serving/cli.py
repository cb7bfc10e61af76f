"""The command line that both daemons share. Nothing heavy is imported until a daemon is started."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from repsearch import __version__, failpoints
from repsearch.errors import ConfigError, RepSearchError
from repsearch.serving import logs
from repsearch.serving.jobs import Service
from repsearch.serving.lease import Orphaned
from repsearch.serving.places import place, refuse_remote
from repsearch.serving.protection import Protection, check_protection, read_secrets


class LogFormat(StrEnum):
    """How log lines are written."""

    text = "text"
    json = "json"


def build_app(service: Service, job_function: str, check_remote: Callable[[str], None] = refuse_remote) -> typer.Typer:
    """Return the command line of `service`, whose jobs `job_function` ("module:attribute") runs.

    check_remote: raises `StoreError` unless jobs can use the object store at a location.
    """
    app = typer.Typer(
        name=service, help=f"The {service} daemon of RepSearch.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
    )

    @app.callback()
    def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False) -> None:
        if version:
            print(__version__)
            raise typer.Exit

    @app.command(help=f"Serve {service} jobs until stopped. SIGTERM drains; a second one stops at once.")
    def serve(
        listen: Annotated[str, typer.Option(help="host:port to listen on; port 0 chooses a free one.")],
        store: Annotated[str, typer.Option(help="Folder, or s3://bucket/prefix, that holds the runs; jobs may use nothing outside it.")],
        device: Annotated[str, typer.Option(help="torch device to compute on: cpu, cuda:0, ...")] = "cpu",
        threads: Annotated[int, typer.Option(help="CPU threads to compute with.", min=1)] = 1,
        log_format: Annotated[LogFormat, typer.Option(help="Form of the log lines on stderr.")] = LogFormat.text,
        grace: Annotated[float, typer.Option(help="Seconds that a running job has to finish after SIGTERM.", min=0.0)] = 30.0,
        orphaned: Annotated[
            Orphaned, typer.Option(help="What becomes of jobs whose orchestrator is gone; exit: they are stopped, and the daemon ends.")
        ] = Orphaned.finish,
        orphaned_after: Annotated[float, typer.Option(help="Seconds without a call after which the orchestrator counts as gone.")] = 300.0,
        exit_with_stdin: Annotated[bool, typer.Option("--exit-with-stdin", help="Stop at once when stdin ends.")] = False,
        tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Speak TLS with this certificate; docs/security.md.")] = None,
        tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")] = None,
        tls_ca: Annotated[Path | None, typer.Option(metavar="PEM", help="Take only clients with a certificate of this authority.")] = None,
        token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Take only clients that know the token in it.")] = None,
        metrics: Annotated[str, typer.Option(metavar="HOST:PORT", help="Serve metrics for Prometheus there; docs/operations.md.")] = "",
        insecure: Annotated[bool, typer.Option("--insecure", help="Listen for other machines without TLS: open to everybody.")] = False,
    ) -> None:
        # gRPC's core writes lines of its own to stderr, which are not ours to format; what they say is in our errors.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        protection = Protection(cert=tls_cert, key=tls_key, ca=tls_ca, token_file=token_file, insecure=insecure)
        try:
            # Before gRPC is loaded, which takes a while.
            logs.configure(service, log_format.value)
            check_protection(listen, protection)
            from repsearch.serving import daemon

            code = daemon.serve(
                service=service,
                job_function=job_function,
                listen=listen,
                store=place(store),
                check_remote=check_remote,
                device=device,
                threads=threads,
                log_format=log_format.value,
                grace_s=grace,
                exit_with_stdin=exit_with_stdin,
                protection=protection,
                orphaned=orphaned,
                orphaned_after_s=orphaned_after,
                metrics=metrics,
            )
        except RepSearchError as error:
            if log_format is LogFormat.text:
                raise
            logging.getLogger("daemon").error("%s", error)
            code = error.exit_code
        raise typer.Exit(code)

    @app.command(help=f"End with 0 if a {service} daemon can run jobs now, with 5 and the reason if not; for service managers.")
    def health(
        address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the daemon listens; by TLS, a name in its certificate.")],
        wait: Annotated[float, typer.Option(help="Seconds that it may take to become ready.", min=0.0)] = 0.0,
        tls_ca: Annotated[
            Path | None, typer.Option(metavar="PEM", help="Authority of the daemon's certificate; plaintext without.")
        ] = None,
        tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="A client's certificate, such as the orchestrator's.")] = None,
        tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")] = None,
        token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="The daemon's token.")] = None,
    ) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        if tls_ca is None and (tls_cert or tls_key or token_file):
            raise ConfigError("--tls-cert, --tls-key and --token-file are of no use without --tls-ca")
        if (tls_cert is None) != (tls_key is None):
            raise ConfigError("--tls-cert and --tls-key belong together; give both")
        from repsearch.serving.probe import check_health

        secrets = read_secrets(Protection(cert=tls_cert, key=tls_key, ca=tls_ca, token_file=token_file))
        check_health(address, secrets, wait_s=wait)

    return app


def run(app: typer.Typer) -> None:
    """Run `app` and end the process: errors a user can act on are one message and their exit code."""
    try:
        failpoints.check()
        app()
    except RepSearchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
