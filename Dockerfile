# ppd in a container:
#
#   docker build -t ppd .
#   docker run --shm-size=8g -v /etc/ppd:/etc/ppd:ro -v ppd-state:/var/lib/ppd \
#       -v /repo:/repo ppd
#
# Before the first night: docker run ... --entrypoint ppd-init ppd

FROM python:3.13-slim AS build

RUN python -m venv /opt/ppd
ENV PATH=/opt/ppd/bin:$PATH
WORKDIR /src
# The lock file first: the layer with the libraries is rebuilt only with it.
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY ppd ./ppd
RUN pip install --no-cache-dir --no-deps . && python -m compileall -q /opt/ppd

FROM python:3.13-slim

RUN useradd --system --uid 990 --home-dir /var/lib/ppd --create-home ppd \
    && install -d -o ppd -g ppd -m 0750 /var/lib/ppd /etc/ppd
COPY --from=build /opt/ppd /opt/ppd

ENV PATH=/opt/ppd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1
USER ppd
WORKDIR /var/lib/ppd
VOLUME /var/lib/ppd
STOPSIGNAL SIGTERM
ENTRYPOINT ["ppd"]
