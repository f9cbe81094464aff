# One image for all services: `flowledger api | executor | projector | topics create`; alone it runs `flowledger dev`.
# Builds with and without BuildKit.

FROM python:3.12-slim AS build
WORKDIR /build
RUN python -m venv /opt/flowledger
ENV PATH=/opt/flowledger/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Dependencies first: they change seldom, and this layer is the slow one.
COPY pyproject.toml ./
# With the readers of office documents; with the JavaScript engine where there is a wheel of it (not for every processor).
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = p['optional-dependencies']; \
print(*p['dependencies'], *extras['documents'], sep='\n'); print(*extras['javascript'], sep='\n', file=open('javascript.txt', 'w'))" > requirements.txt \
 && pip install -r requirements.txt \
 && (pip install --only-binary :all: -r javascript.txt || echo "no JavaScript engine for this processor: code nodes run Python only")
COPY README.md LICENSE ./
COPY flowledger flowledger
COPY libs libs
COPY services services
RUN pip install --no-deps .

FROM python:3.12-slim
LABEL org.opencontainers.image.title="flowledger"
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin flowledger \
 && mkdir /data && chown flowledger:flowledger /data
COPY --from=build /opt/flowledger /opt/flowledger
COPY examples /opt/flowledger/examples
ENV PATH=/opt/flowledger/bin:$PATH PYTHONUNBUFFERED=1 FLOWLEDGER_DATA=/data HEALTH_PORT=5001
WORKDIR /opt/flowledger
USER flowledger
VOLUME /data
EXPOSE 5001
# Every service answers /readyz on its port; HEALTH_PORT says which one.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=6 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['HEALTH_PORT'] + '/readyz', timeout=2)"]
ENTRYPOINT ["flowledger"]
CMD ["dev", "--host", "0.0.0.0"]
