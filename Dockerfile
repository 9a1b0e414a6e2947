# The image of the gateway and of workers. One file of pins for both: requirements.txt.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/headrace
COPY requirements.txt ./
# Wheels only: no compiler is needed here, and none is in the image.
RUN /opt/headrace/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary=:all: -r requirements.txt
RUN /opt/headrace/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary=:all: setuptools==80.9.0
COPY pyproject.toml README.md LICENSE ./
COPY headrace headrace
COPY streams streams
COPY models models
COPY serving serving
RUN /opt/headrace/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm
# A number needs no entry in /etc/passwd. New volumes take the owner of the folder that they cover.
RUN install -d -o 10001 -g 10001 /data /var/lib/headrace
COPY --from=build /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/headrace \
    HEADRACE_HOME=/data \
    NUMBA_CACHE_DIR=/var/lib/headrace/kernels \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/headrace
USER 10001:10001
# As the user who runs them, into a folder that it may write: numba passes over a cache that it cannot write. On a machine
# with another processor than this one they are compiled again at the first start.
RUN python -c "from headrace.streams import jsonkernels, kernels, recordbatches, windowkernels; kernels.warm()"
ENTRYPOINT ["headrace"]
CMD ["--help"]
