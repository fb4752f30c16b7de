# The service, for every node of its cluster: `head` (the default) or `worker`, see deploy/entrypoint.sh.
# Ray refuses nodes whose Python or Ray differs by as little as a patch release: build once, run the same image on all.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# For CUDA https://download.pytorch.org/whl/cu130, see docker-compose.gpu.yml. Compose passes TORCH_INDEX_URL on.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG TORCH_VERSION=2.13.0
ARG RAY_VERSION=2.60.0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app
RUN python -m venv /app/venv
# A layer of its own, from its own index: it is by far the largest, and changes of this code do not rebuild it.
RUN --mount=type=cache,target=/root/.cache/pip \
    /app/venv/bin/pip install --index-url "$TORCH_INDEX_URL" "torch==$TORCH_VERSION"
# An editable installation of an empty package: it puts /app on the path of every process and makes the version known,
# and a change of the code does not install the dependencies again.
ARG EXTRAS=serving,otel
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY dalle/__init__.py dalle/
RUN --mount=type=cache,target=/root/.cache/pip \
    /app/venv/bin/pip install "ray[serve]==$RAY_VERSION" --editable ".[$EXTRAS]"

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="dalle-serve" \
      org.opencontainers.image.description="Text to image with one decoder-only Transformer, as a service on Ray Serve" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG UID=1000
RUN useradd --uid "$UID" --no-create-home --home-dir /tmp dalle
# The home is /tmp, so that everything else can be mounted read-only. The last variable gives errors of Serve's own
# proxy the service's format, also on Kubernetes, which starts Ray without the entrypoint; see serving/proxy.py.
ENV PATH=/app/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_worker_niceness=0 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serving.proxy:middlewares
WORKDIR /app
COPY --from=build /app/venv venv/
COPY LICENSE NOTICE ./
COPY deploy/ deploy/
COPY dalle/ dalle/
COPY serving/ serving/
USER dalle
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s --retries=3 \
    CMD ["/app/deploy/entrypoint.sh", "check", "service"]
ENTRYPOINT ["/app/deploy/entrypoint.sh"]
CMD ["head"]
