# The export and training image: paca with torch (CPU build), for one-off work.
#   docker compose run --rm export pacavit_tiny_p2cconv_100_0 --checkpoint /checkpoints/w.pth --out /models/birds/1/model.onnx
ARG BASE=python:3.12-slim
FROM ${BASE}
# Where torch comes from: the CPU index has the small builds. Empty = the package index of everything else, which serves CUDA builds.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/paca/bin:$PATH
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY service service
COPY export export
RUN --mount=type=cache,target=/var/cache/pip python3 -m venv /opt/paca \
 && pip install -q ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt torch \
 && pip install -q -c constraints.txt '.[cpu,train]'
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin paca && install -d -o 10001 -g 10001 /models
USER 10001
WORKDIR /tmp
ENTRYPOINT ["paca"]
CMD ["--help"]
