# Builds with BuildKit (`DOCKER_BUILDKIT=1 docker build .`), also behind a proxy whose certificate the
# base image does not know: --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
ARG BASE=python:3.11-slim-bookworm
# 1 adds what `train.compile` builds with: Triton, compilers, Python's headers.
ARG COMPILE=0

# A small init that passes SIGTERM on, as nothing else runs as process 1.
FROM ${BASE} AS init
# hadolint ignore=DL3008
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

FROM ${BASE} AS torch
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/venv \
    && printf '%s\n' /opt/libraries /opt/worker /opt/triton \
      > "$(/opt/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/worker.pth"
# triton.txt is for COMPILE=1 alone: 1 GB that only `torch.compile` imports.
COPY requirements.lock .
RUN awk '/^[^ ]/ {file = /^triton/ ? "triton" : /^(torch|nvidia-|cuda-)/ ? "torch" : "libraries"} \
      {print > (file ".txt")}' requirements.lock
# In a layer of its own, which changes with PyTorch only. PyPI has CUDA wheels; CPU wheels lie in
# indexes that differ by place, so with WHEELS=cpu they are those of the locked version in CPU_INDEX.
ARG WHEELS=cuda
ARG CPU_INDEX
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    if [ "$WHEELS" = cpu ]; then \
      sed -n 's/^\(torch\(vision\)\?==[^ ;]*\).*/\1/p' torch.txt > cpu.txt \
      && set -- --index-url "${CPU_INDEX:?an index of CPU wheels}" --requirement cpu.txt; \
    else \
      set -- --require-hashes --requirement torch.txt; \
    fi \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps "$@"

FROM torch AS triton
ARG WHEELS=cuda
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    mkdir /opt/triton \
    && [ "$WHEELS" = cpu ] \
    || python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
      --target /opt/triton --require-hashes --requirement triton.txt

FROM torch AS libraries
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
      --target /opt/libraries --require-hashes --requirement libraries.txt

FROM libraries AS package
COPY pyproject.toml README.md ./
COPY worker worker
# setuptools is one of the locked libraries.
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
      --no-build-isolation --target /opt/worker .

FROM ${BASE} AS compile-0
RUN groupadd --gid 10001 worker \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp \
      --shell /usr/sbin/nologin worker
COPY --from=init /usr/bin/tini /usr/bin/tini
COPY --from=torch /opt/venv /opt/venv
COPY --from=libraries /opt/libraries /opt/libraries
COPY --from=package /opt/worker /opt/worker
# /tmp is the one place that is written to, so that the root can be read-only.
ENV PATH=/opt/worker/bin:/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "worker"]
CMD ["--help"]

FROM compile-0 AS compile-1
USER 0:0
# python3-dev only where the base has no headers of its own: it would bring Debian's Python.
# hadolint ignore=DL3008
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    apt-get update \
    && header="$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
      "$([ -e "$header" ] && echo libc6-dev || echo python3-dev)" \
    && rm -rf /var/lib/apt/lists/*
COPY --from=triton /opt/triton /opt/triton
USER 10001:10001

# hadolint ignore=DL3006
FROM compile-${COMPILE}
# Last, as they differ in every build.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED
ENV WORKER_REVISION=${REVISION}
LABEL org.opencontainers.image.title="worker" \
      org.opencontainers.image.description="Stateless batch worker that fine-tunes image classifiers" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
