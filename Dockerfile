# One image; the role is the command: serve (default), web, dimse, worker.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m pip install --no-cache-dir "hatchling>=1.27,<2"
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.13-slim
# Text from right to left in pictures: see docs/adr/0019.
RUN apt-get update && apt-get install --yes --no-install-recommends libfribidi0 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 gateway && mkdir /data && chown gateway /data
COPY requirements.lock /tmp/requirements.lock
RUN python -m pip install --no-cache-dir --require-hashes -r /tmp/requirements.lock
COPY --from=build /wheels /wheels
RUN python -m pip install --no-cache-dir --no-deps /wheels/*.whl
USER gateway
ENV GATEWAY_DATA=/data GATEWAY_HTTP__LISTEN=0.0.0.0:8080 GATEWAY_DIMSE__LISTEN=0.0.0.0:11112
VOLUME /data
EXPOSE 8080 11112
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
ENTRYPOINT ["imageset-gateway"]
CMD ["serve"]
