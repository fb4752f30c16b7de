#!/bin/sh
# One node of the service's Ray cluster, in a container or on any machine:
#
#   deploy/entrypoint.sh head            the first node: Ray, then the application of serving/config.yaml
#   deploy/entrypoint.sh worker          a further node, of the cluster at DALLE_RAY_ADDRESS
#   deploy/entrypoint.sh check node      health check: exit code 0 if Ray runs here
#   deploy/entrypoint.sh check service   health check: exit code 0 if the service answers here and its models are ready
#   deploy/entrypoint.sh check settings  exit code 0 if settings, API keys and models are valid; else prints the mistake
#   deploy/entrypoint.sh config          prints the configuration that `head` deploys
#
# `head` and `worker` stay in the foreground, and shut down in order on SIGTERM. python, ray and serve must be on the
# PATH. Ray needs a token, in a file that RAY_AUTH_TOKEN_PATH names or from `ray get-auth-token --generate`.
set -eu
cd "$(dirname "$0")/.."

# Variables: DALLE_RAY_... are read by this script, DALLE_SERVE_... by this script and the service, RAY_... by Ray.
: "${DALLE_RAY_CONFIG:=serving/config.yaml}"
: "${DALLE_RAY_ADDRESS:=127.0.0.1:6379}"
: "${DALLE_RAY_PORT:=6379}"
: "${DALLE_RAY_DASHBOARD_PORT:=8265}"
: "${DALLE_RAY_CLIENT_PORT:=10001}"
: "${DALLE_RAY_AGENT_PORT:=52365}"
: "${DALLE_RAY_METRICS_PORT:=8080}"
: "${DALLE_RAY_OBJECT_STORE_BYTES:=200000000}"
: "${DALLE_RAY_TEMP_DIR:=/tmp/ray}"
: "${DALLE_RAY_READY_SECONDS:=300}"
: "${DALLE_RAY_DRAIN_SECONDS:=130}"
dashboard=http://127.0.0.1:$DALLE_RAY_DASHBOARD_PORT

# Without a token anyone who reaches a port of Ray can run code. Only an explicit `disabled` turns it off.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
# Compose can set a variable to an empty value, but not unset it, and Ray would take it for an address.
[ -n "${RAY_REDIS_ADDRESS:-}" ] || unset RAY_REDIS_ADDRESS
# Requests to this machine itself do not go through a proxy.
export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}"
export no_proxy="$NO_PROXY"
# Gives errors of Serve's own proxy the service's format; see serving/proxy.py.
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH="${RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH:-serving.proxy:middlewares}"
# By default Ray gives the processes that draw a lower priority than its own. Here they have the same.
export RAY_worker_niceness="${RAY_worker_niceness:-0}"
# Serve replaces its proxy after three failed checks; until then nobody is served.
export RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S="${RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S:-1}"
# Replicas are processes of Ray, and import the application by name.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

say() {
    echo "entrypoint: $*" >&2
}

# config [empty|url]: prints the Serve configuration with the environment applied; with `empty` without its applications;
# with `url` the URL of the service on this machine instead.
config() {
    python - "$DALLE_RAY_CONFIG" "${1:-all}" <<'PYTHON'
import os
import sys

import yaml

PREFIX = "DALLE_SERVE_"
path, what = sys.argv[1:]
try:
    with open(path, encoding="utf-8") as file:
        config = yaml.safe_load(file)
except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
    sys.exit(f"error: {path} cannot be read: {' '.join(str(error).split())}")
if not isinstance(config, dict) or not {"http_options", "applications"} <= config.keys():
    sys.exit(f"error: {path} is no configuration of Serve: it needs http_options and applications")

http = config["http_options"]
http["host"] = os.environ.get(PREFIX + "HOST") or http["host"]
http["port"] = int(os.environ.get(PREFIX + "PORT") or http["port"])
# In the service `args` override the environment. Here the environment wins: fields that it sets are removed from `args`.
for name in os.environ:
    if name.startswith(PREFIX):
        *outer, field = name.removeprefix(PREFIX).lower().split("__")
        for application in config["applications"]:
            fields = application.get("args", {})
            for key in outer:
                fields = fields.get(key, {})
            fields.pop(field, None)

if what == "empty":
    config["applications"] = []
if what == "url":
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http["host"], http["host"])
    host = f"[{host}]" if ":" in host else host
    application, *_others = config["applications"] or [{}]  # the service is the first
    prefix = (application.get("route_prefix") or "").rstrip("/")
    print(f"http://{host}:{http['port']}{prefix}")
else:
    yaml.safe_dump(config, sys.stdout, sort_keys=False)
PYTHON
}

# settings [port]: validates the settings of the service, its API keys and the names of its models, and with `port` that
# no other program listens on its port, which Serve's proxy would share with it; prints a mistake in a line.
settings() {
    text=$(config) || return 2
    python - "$text" "${1:-}" <<'PYTHON'
import sys

import yaml

from dalle.checkpoint.store import find_model
from dalle.command_line import exit_on_mistake
from serving.ingress.callers import read_keys
from serving.preflight import reserve_port
from serving.safety.moderation import check_safety
from serving.settings import load_settings

with exit_on_mistake():
    config = yaml.safe_load(sys.argv[1])
    if sys.argv[2] == "port":
        reserve_port(config["http_options"]["host"], config["http_options"]["port"])
    for application in config["applications"]:
        if application["import_path"] == "serving.app:build":
            settings = load_settings(application.get("args", {}))
            read_keys(settings.keys_file)
            check_safety(settings.safety)
            for model in settings.models:
                find_model(model.path)
PYTHON
}

# answers URL: succeeds if a GET does.
answers() {
    python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5).close()' "$1" 2>/dev/null
}

# connects HOST:PORT: succeeds if a server listens there.
connects() {
    python - "$1" 2>/dev/null <<'PYTHON'
import socket
import sys

host, _, port = sys.argv[1].rpartition(":")
socket.create_connection((host, int(port)), timeout=5).close()
PYTHON
}

check() {
    case ${1:-} in
    node) answers "http://127.0.0.1:$DALLE_RAY_AGENT_PORT/api/local_raylet_healthz" ;;
    service) answers "$(config url)/ready" ;;
    settings) settings ;;
    *) usage ;;
    esac
}

# node OPTION...: replaces this process by `ray start`, with the options of every node.
node() {
    set -- "$@" --block --disable-usage-stats \
        "--temp-dir=$DALLE_RAY_TEMP_DIR" \
        "--dashboard-agent-listen-port=$DALLE_RAY_AGENT_PORT" \
        "--metrics-export-port=$DALLE_RAY_METRICS_PORT" \
        "--object-store-memory=$DALLE_RAY_OBJECT_STORE_BYTES"
    [ -z "${DALLE_RAY_NODE_IP:-}" ] || set -- "$@" "--node-ip-address=$DALLE_RAY_NODE_IP"
    [ -z "${DALLE_RAY_NUM_CPUS:-}" ] || set -- "$@" "--num-cpus=$DALLE_RAY_NUM_CPUS"
    exec ray start "$@"
}

running() {
    kill -0 "$ray" 2>/dev/null
}

# deploy [empty]: deploys the output of `config`.
deploy() {
    file=$(mktemp)
    status=0
    config "$@" >"$file" && serve deploy "$file" --address "$dashboard" >&2 || status=$?
    rm -f "$file"
    return "$status"
}

# Deletes the application and waits until it is gone: its replicas finish their requests, and the proxy passes on the
# responses. `serve shutdown` would kill the proxy first, and with it every response on its way.
drain() {
    say "no new requests; finishing those that run"
    deploy empty || return 0
    end=$(($(date +%s) + DALLE_RAY_DRAIN_SECONDS))
    while running && [ "$(date +%s)" -lt "$end" ]; do
        if serve status --address "$dashboard" 2>/dev/null | grep -q '^applications: {}'; then
            return 0
        fi
        sleep 1
    done
    say "some requests were not finished within $DALLE_RAY_DRAIN_SECONDS s"
}

# stop STATUS: drains the application, stops Ray and exits.
stop() {
    trap '' TERM INT
    [ -z "$deployed" ] || drain
    if [ -n "$ray" ]; then
        # Only this node's processes: `ray stop` would end those of every cluster on the machine.
        kill -TERM "$ray" 2>/dev/null || true
        wait "$ray" || true
    fi
    say "stopped"
    exit "$1"
}

# fail MESSAGE: stops with status 1.
fail() {
    say "$1"
    stop 1
}

# given_up: succeeds if Serve has given up starting an application, and prints why.
given_up() {
    text=$(serve status --address "$dashboard" 2>/dev/null) || return 1
    python - "$text" >&2 <<'PYTHON'
import sys

import yaml

given_up = False
for name, application in yaml.safe_load(sys.argv[1])["applications"].items():
    if application["status"] == "DEPLOY_FAILED":
        given_up = True
        parts = [one for one in application["deployments"].values() if one["status"] == "DEPLOY_FAILED"]
        for one in parts or [application]:
            # a stack trace, whose last line is the reason
            *_others, reason = (one["message"].strip() or "Serve gives no reason").splitlines()
            print(f"{name}: {reason}")
sys.exit(not given_up)
PYTHON
}

start_head() {
    ray=
    deployed=
    trap 'stop 0' TERM INT
    settings port || exit 2
    # Ray drains a node before it stops. The head never becomes empty, and the application is gone by then.
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
    set -- --head \
        "--port=$DALLE_RAY_PORT" \
        "--ray-client-server-port=$DALLE_RAY_CLIENT_PORT" \
        --include-dashboard=true --dashboard-host=127.0.0.1 "--dashboard-port=$DALLE_RAY_DASHBOARD_PORT"
    if [ -n "${DALLE_RAY_REDIS_PASSWORD_FILE:-}" ] && [ -n "${RAY_REDIS_ADDRESS:-}" ]; then
        set -- "$@" "--redis-password=$(cat "$DALLE_RAY_REDIS_PASSWORD_FILE")"
    fi
    node "$@" &
    ray=$!

    until answers "$dashboard/api/gcs_healthz"; do
        running || fail "Ray did not start"
        sleep 1
    done
    deploy || fail "the application was not deployed"
    deployed=yes

    end=$(($(date +%s) + DALLE_RAY_READY_SECONDS))
    asked=$(date +%s)
    until check service; do
        running || fail "Ray ended"
        # Not every time: asking takes a second of processor time.
        if [ "$(date +%s)" -ge $((asked + 10)) ]; then
            if given_up; then
                deployed=
                fail "the application could not be started"
            fi
            asked=$(date +%s)
        fi
        if [ "$(date +%s)" -ge "$end" ]; then
            serve status --address "$dashboard" >&2 || true
            fail "the service was not ready after $DALLE_RAY_READY_SECONDS s"
        fi
        sleep 1
    done
    say "ready at $(config url)"
    wait "$ray" || true
    ray=
    deployed=
    fail "Ray ended"
}

# leave: stops a worker. Ray moves its replicas to other nodes, or lets them finish their requests, for at most
# DALLE_RAY_DRAIN_SECONDS. When the head has gone there is nothing to finish, and Ray would look for it for a minute.
leave() {
    trap '' TERM INT
    [ -z "$ray" ] || kill -TERM "$ray" 2>/dev/null || true
    while [ -n "$ray" ] && running; do
        connects "$DALLE_RAY_ADDRESS" || {
            say "there is no head at $DALLE_RAY_ADDRESS any more"
            kill -KILL "$ray" 2>/dev/null || true
        }
        sleep 1
    done
    say "stopped"
    exit 0
}

start_worker() {
    ray=
    trap leave TERM INT
    # A worker that starts before its head would fail, and be restarted again and again.
    until connects "$DALLE_RAY_ADDRESS"; do
        say "waiting for the head at $DALLE_RAY_ADDRESS"
        sleep 2
    done
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="$DALLE_RAY_DRAIN_SECONDS"
    node "--address=$DALLE_RAY_ADDRESS" &
    ray=$!
    status=0
    wait "$ray" || status=$?
    say "Ray ended"
    exit "$status"
}

usage() {
    echo "usage: $0 head | worker | check node | check service | check settings | config" >&2
    exit 2
}

for program in python ray serve; do
    command -v "$program" >/dev/null || {
        say "$program is not on the PATH"
        exit 1
    }
done
case ${1:-} in
head) start_head ;;
worker) start_worker ;;
check) check "${2:-}" ;;
config) config ;;
*) usage ;;
esac
