# The server image. Targets: `cpu` (default) and `cuda`. Copies service/ only, so it can hold neither torch nor a training.
#   docker build -t paca .                                  docker build -t paca:cuda --target cuda .
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/paca
WORKDIR /src
COPY requirements requirements

FROM build AS build-cpu
# Dependencies first: this layer is reused until the lock file changes. Only files whose hashes stand there are installed; `make lock` writes it.
RUN --mount=type=cache,target=/var/cache/pip /opt/paca/bin/pip install -q --require-hashes -r requirements/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN /opt/paca/bin/pip install -q --no-deps --no-build-isolation . \
 && find /opt/paca -depth \( -name __pycache__ -o -name tests -path '*numpy*' \) -exec rm -rf {} + \
 && /opt/paca/bin/pip uninstall -q -y setuptools pip \
 && models=$(echo /opt/paca/lib/python3*/site-packages/service/models) && mv "$models" /models && ln -s /models "$models"

FROM build AS build-cuda
RUN --mount=type=cache,target=/var/cache/pip /opt/paca/bin/pip install -q --require-hashes -r requirements/gpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN /opt/paca/bin/pip install -q --no-deps --no-build-isolation . \
 && find /opt/paca -depth -name __pycache__ -exec rm -rf {} + \
 && /opt/paca/bin/pip uninstall -q -y setuptools pip \
 && models=$(echo /opt/paca/lib/python3*/site-packages/service/models) && mv "$models" /models && ln -s /models "$models"

FROM ${BASE} AS runtime
# /models is the embedded repository; a new volume mounted there starts as its copy and takes further models.
ENV PATH=/opt/paca/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PACA_HOST=0.0.0.0 PACA_PORT=8000 PACA_LOG_FORMAT=json PACA_MODELS=/models
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin paca
USER 10001
# 8001: gRPC, with PACA_GRPC_PORT=8001
EXPOSE 8000 8001
# slim has no curl; ready means a real forward pass succeeded.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['PACA_PORT']}/readyz\", timeout=2)"]
CMD ["paca", "serve"]

FROM runtime AS cuda
# The driver comes from the host through NVIDIA's container toolkit; CUDA and cuDNN come with the wheels.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/paca /opt/paca
COPY --from=build-cuda --chown=10001:10001 /models /models

FROM runtime AS cpu
COPY --from=build-cpu /opt/paca /opt/paca
COPY --from=build-cpu --chown=10001:10001 /models /models
