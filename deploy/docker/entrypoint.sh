#!/bin/sh
# What a container of Hilbert does: `docker run hilbert [verb] [flags]`; flags alone mean `serve`, and so does
# nothing. `healthcheck` asks the server in this container. Anything else is run as it stands.
set -eu

case "${1:-serve}" in
    healthcheck)
        exec python -c '
import os, sys, urllib.request
url = "http://127.0.0.1:%s%s" % (os.environ.get("HILBERT_PORT", "7997"), sys.argv[1])
urllib.request.urlopen(url, timeout=4).close()' "${2:-/healthz}"
        ;;
    -*) set -- serve "$@" ;;
    "" | serve) [ "$#" -gt 0 ] || set -- serve ;;
    v1 | v2 | tei | runpod | models | verify | export) ;;
    keys | authz | config | status) exec hilbert "$@" ;;
    *) exec "$@" ;;
esac

for folder in "${HF_HOME:-}" "${HILBERT_CACHE_DIR:-}"; do
    if [ -n "$folder" ] && ! { mkdir -p "$folder" && [ -w "$folder" ]; } 2>/dev/null; then
        echo "hilbert: user $(id -u) cannot write to $folder; give it the folder (chown $(id -u) $folder)," \
            "or models are fetched and traced again at every start" >&2
    fi
done

exec hilbert "$@"
