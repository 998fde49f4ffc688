# Two images from one file: `api` (no torch) and `worker` (torch; CPU by default, CUDA by TORCH_INDEX_URL).
#   docker build --target api -t gramfuse-api .
#   docker build --target worker -t gramfuse-worker --build-arg TORCH_INDEX_URL=<PyTorch's index of your CUDA version> .
# Both run as user 10001 and write nothing outside of /tmp and the folders below; the root may be read-only.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS wheel
WORKDIR /source
RUN pip install --no-cache-dir build
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
COPY shared shared
COPY migrations migrations
RUN python -m build --wheel --outdir /wheels

FROM python:${PYTHON_VERSION}-slim AS runtime
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GRAMFUSE_SERVER_HOME=/var/lib/gramfuse
RUN groupadd --system --gid 10001 gramfuse \
 && useradd --system --uid 10001 --gid gramfuse --home-dir /var/lib/gramfuse --create-home gramfuse \
 && mkdir -p /var/lib/gramfuse/blobs /var/lib/gramfuse/keys /var/lib/gramfuse/scratch \
 && chmod 700 /var/lib/gramfuse/keys \
 && chown -R gramfuse:gramfuse /var/lib/gramfuse
# A new volume takes its owner from the folder that it is mounted on, so each of them is made here.
WORKDIR /var/lib/gramfuse
COPY constraints.txt /opt/gramfuse/constraints.txt

FROM runtime AS api
COPY --from=wheel /wheels /opt/gramfuse/wheels
RUN pip install --no-cache-dir --constraint /opt/gramfuse/constraints.txt \
      "$(echo /opt/gramfuse/wheels/gramfuse-*.whl)[direct]"
USER gramfuse
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=5 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
CMD ["gramfuse-server", "serve", "--host", "0.0.0.0", "--port", "8080"]

FROM runtime AS worker
# The CPU build is the default because it runs everywhere and is a tenth of the size.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# Beside the usual index: PyTorch's has torch alone in every version, not what torch needs.
RUN pip install --no-cache-dir --constraint /opt/gramfuse/constraints.txt --extra-index-url "${TORCH_INDEX_URL}" torch
COPY --from=wheel /wheels /opt/gramfuse/wheels
RUN pip install --no-cache-dir --constraint /opt/gramfuse/constraints.txt \
      "$(echo /opt/gramfuse/wheels/gramfuse-*.whl)[worker]"
USER gramfuse
# A busy machine may take seconds to start the command; nothing restarts a worker because of this alone.
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["gramfuse-server", "worker-health"]
CMD ["gramfuse-server", "worker"]
