# ppd in a container:
#
#   docker build -t ppd .
#   docker run --shm-size=8g -v /etc/ppd:/etc/ppd:ro -v ppd-state:/var/lib/ppd \
#       -v /repo:/repo ppd
#
# Before the first night: docker run ... --entrypoint ppd-init ppd
# A site's image has its pipelines and instrument on top: FROM ppd, see
# docs/deployment.md. tools/run-dockerfile does these steps without an engine.
#
# A registry may give out another image under the same name one day: add its
# digest (PYTHON_BUILD=python:3.13.9-bookworm@sha256:...) where that matters.
ARG PYTHON_BUILD=python:3.13.9-bookworm
ARG PYTHON_RUN=python:3.13.9-slim-bookworm

FROM ${PYTHON_BUILD} AS build

# Groups of libraries that setup.cfg names: "postgresql demo" for compose.yaml.
ARG EXTRAS=postgresql
ENV PATH=/opt/ppd/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/ppd
WORKDIR /src
# What changes seldom first: the layer with the libraries is rebuilt only with it.
COPY requirements.txt setup.cfg tools/runtime-requirements ./
RUN python runtime-requirements setup.cfg requirements.txt $EXTRAS > runtime.txt \
    && pip install --requirement runtime.txt --constraint requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY ppd ./ppd
# The version of setuptools is the locked one too; nothing that installs stays.
RUN pip install --constraint requirements.txt setuptools \
    && pip install --no-deps --no-build-isolation . \
    && pip uninstall --yes setuptools pip \
    && python -m compileall -q /opt/ppd

FROM ${PYTHON_RUN}

RUN groupadd --system --gid 990 ppd \
    && useradd --system --uid 990 --gid 990 --home-dir /var/lib/ppd --shell /usr/sbin/nologin ppd \
    && install -d -o ppd -g ppd -m 0750 /var/lib/ppd /run/ppd /repo \
    && install -d -m 0755 /etc/ppd \
    && python -m pip uninstall --yes pip
COPY --from=build /opt/ppd /opt/ppd

ENV PATH=/opt/ppd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1
# By number: Kubernetes sees then that it is not root.
USER 990:990
WORKDIR /var/lib/ppd
VOLUME /var/lib/ppd
# ppd is process 1: it reaps whatever a task leaves, and hands signals on.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 \
    CMD ["ppdctl", "status", "--timeout", "10"]
ENTRYPOINT ["ppd"]
