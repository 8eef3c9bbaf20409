"""The typer app: every verb but serving, whose flags come from the settings table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from hilbert.cli.keys import keys
from hilbert.cli.remote import DEFAULT_URL, ApiKey, Name, Url, ask, models_table, watch_status
from hilbert.config import BadSetting, Effective, ServerSettings, effective, load
from hilbert.errors import ServingError

app = typer.Typer(
    name="hilbert",
    help="An inference server for embeddings, rerankers and classifiers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="Fetch models, and say how they run.", no_args_is_help=True)
app.add_typer(models, name="models")
config = typer.Typer(help="Check settings, and say where each comes from.", no_args_is_help=True)
app.add_typer(config, name="config")
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app.add_typer(keys, name="keys")

# Where nginx configurations written for a sidecar look for it.
_AUTHZ_PORT = "8000"

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Token = Annotated[str | None, typer.Option(help="Hub token for private models.")]
Engine = Annotated[str | None, typer.Option(help="auto, openvino, torch, onnx or ctranslate2.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16, int8 or fp8.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[str | None, typer.Option(help="Compute threads.")]
CacheDir = Annotated[str | None, typer.Option(help="Folder for traced graphs.")]
ConfigFile = Annotated[str | None, typer.Option(metavar="FILE", help="YAML file of settings.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
]


def run(words: Sequence[str]) -> int:
    """Run a command; errors that were raised on purpose become one line."""
    try:
        app(args=list(words), prog_name="hilbert", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BadSetting as error:
        typer.echo(f"hilbert {' '.join(words[:1])}: {error}", err=True)
        return error.exit_code
    except ServingError as error:
        typer.echo(f"hilbert: {error.message}", err=True)
        return 1
    return 0


@app.command(add_help_option=False)
def serve() -> None:
    """Serve models over HTTP (`hilbert serve --help` lists the flags)."""
    raise AssertionError("serving is started before typer is imported")


@app.command(add_help_option=False)
def v2() -> None:
    """As serve, with Infinity's command line."""
    raise AssertionError("serving is started before typer is imported")


@app.command(add_help_option=False)
def runpod() -> None:
    """Take jobs of RunPod's serverless platform (`hilbert runpod --help` lists the flags)."""
    raise AssertionError("the worker is started before typer is imported")


@app.command(add_help_option=False)
def tei() -> None:
    """As serve, with the command line of text-embeddings-inference."""
    raise AssertionError("serving is started before typer is imported")


@config.command(context_settings=_PASSED_ON)
def show(context: typer.Context, config: ConfigFile = None) -> None:
    """Print every setting, its value and who said so. Takes the flags of `hilbert serve`, too."""
    from hilbert.config.schema import rows, table

    typer.echo(table(rows(_effective(context, config))))


@config.command(context_settings=_PASSED_ON)
def check(context: typer.Context, config: ConfigFile = None) -> None:
    """Say whether a server would start with these settings; exit status 2 if not. Asks no network."""
    from hilbert.cli.check import complaints, not_here

    found = _effective(context, config).settings
    if wrong := complaints(found):
        raise BadSetting("; ".join(wrong))
    names = ", ".join(model.name for model in found.models)
    typer.echo(f"good: {names}")
    if unknown := not_here(found):
        typer.echo(f"not on this machine yet, so their files were not asked: {', '.join(unknown)}", err=True)


@config.command()
def schema() -> None:
    """Print the JSON schema of the settings file, for editors."""
    import json

    from hilbert.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@models.command()
def pull(
    model: ModelId,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Fetch a model, or what has changed in it, and print its folder."""
    from hilbert.hub import pull as pull_model

    settings = _settings(model, trust_remote_code, revision=revision, token=token)
    spec = pull_model(
        model,
        revision=settings.models[0].revision or None,
        token=settings.token or None,
        trust_remote_code=settings.models[0].trust_remote_code,
        cache_dir=settings.hub_cache_dir or None,
        own_cache=settings.cache_dir,
    )
    typer.echo(spec.path)


@models.command()
def info(
    model: ModelId,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: TrustRemoteCode = False,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Ask this server about one of its models instead.")
    ] = "",
    api_key: ApiKey = "",
) -> None:
    """Say what a model is, which way it runs, and why; or, with --url, what a server says of it."""
    if url:
        import json

        typer.echo(json.dumps(ask("GET", url, f"/v1/models/{model}", api_key), indent=2))
        return
    from hilbert.cli.describe import describe
    from hilbert.cli.runtime import resolve_model

    settings = _settings(model, trust_remote_code, revision=revision, token=token)
    typer.echo(describe(resolve_model(settings.models[0], settings)))


@models.command("list")
def list_models(url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """List the models of a running server, loaded or not."""
    typer.echo(models_table(ask("GET", url, "/v1/models", api_key)["data"]))


@models.command("load")
def load_model(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Have a running server load a model."""
    typer.echo(models_table([ask("POST", url, "/admin/models/load", api_key, {"model": name})]))


@models.command("unload")
def unload_model(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Have a running server give a model's memory back; the next request loads it again."""
    typer.echo(models_table([ask("POST", url, "/admin/models/unload", api_key, {"model": name})]))


@models.command("reload")
def reload_model(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Have a running server look at a model's files again and load it."""
    typer.echo(models_table([ask("POST", url, "/admin/models/reload", api_key, {"model": name})]))


@app.command()
def status(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Pause between two looks.")] = 1.0,
) -> None:
    """Show a running server: memory, models and the last edit of its settings. Live on a terminal."""
    watch_status(url, api_key, every)


@app.command()
def verify(
    model: ModelId,
    revision: Revision = None,
    token: Token = None,
    engine: Engine = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare the vectors served here with sentence-transformers, and print the certificate."""
    from hilbert.cli.verify import certify

    settings = _settings(
        model,
        trust_remote_code,
        revision=revision,
        token=token,
        engine=engine,
        dtype=dtype,
        device=device,
        threads=threads,
        cache_dir=cache_dir,
    )
    certificate = certify(settings)
    typer.echo(certificate.text())
    raise typer.Exit(0 if certificate.is_good else 1)


@app.command()
def export(
    model: ModelId,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; must not exist yet.")],
    revision: Revision = None,
    token: Token = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a folder that `hilbert serve -m DIR` serves without torch."""
    from hilbert.cli.export import export_model

    settings = _settings(model, trust_remote_code, revision=revision, token=token, dtype=dtype)
    typer.echo(export_model(settings, folder))


@app.command()
def authz(
    keys_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The file of keys; edits count at once.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[str | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    uds: Annotated[str | None, typer.Option(metavar="PATH", help="Listen on this unix socket.")] = None,
    trusted_proxies: Annotated[
        str | None, typer.Option(metavar="NETWORKS", help="Whose X-Forwarded-For is believed.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="How much is logged.")] = None,
    json_output: Annotated[bool, typer.Option("--json-output", help="Log JSON objects.")] = False,
) -> None:
    """Answer a proxy's question whether a request may pass: 204 or 401 on /_authz."""
    from hilbert.cli.authz import serve_authz

    flags = {
        "keys_file": keys_file,
        "host": host,
        "port": port or os.environ.get("HILBERT_PORT") or _AUTHZ_PORT,
        "uds": uds,
        "trusted_proxies": trusted_proxies,
        "log_level": log_level,
    }
    words = _words(flags) + (["--json-output"] if json_output else [])
    serve_authz(load(words, os.environ)[0])


def _effective(context: typer.Context, config: str | None) -> Effective:
    """These flags as `serve` would read them."""
    words = [*(["--config", config] if config else []), *context.args]
    return effective(words, os.environ)


def _settings(model: str, trust_remote_code: bool, **flags: str | None) -> ServerSettings:
    """These options as `serve` would read them, environment and messages included."""
    words = ["--model-id", model, *(["--trust-remote-code"] if trust_remote_code else [])]
    return load(words + _words(flags), os.environ)[0]


def _words(flags: Mapping[str, str | None]) -> list[str]:
    """Options that were given, as `serve` takes them."""
    given = {"--" + name.replace("_", "-"): value for name, value in flags.items() if value is not None}
    return [word for pair in given.items() for word in pair]
